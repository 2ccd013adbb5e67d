"""The hand-written blocks on weights in every number format, against plain autograd on the dense copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.model.attention import attention_inputs, register
from topcoat.model.families import FAMILIES
from topcoat.model.fill import block_linears
from topcoat.model.fuse import FusedModel, fuse
from topcoat.model.tiny import VOCAB, tiny_model
from topcoat.quant.formats import FORMATS
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import read_config

SETTINGS = {name: {"format": name} for name in FORMATS}
SETTINGS |= {"gguf": {"format": "gguf", "type": "Q4_1"}, "gptq": {"format": "gptq", "group_size": 32}}
LENGTHS = [9, 14]


def step(model: nn.Module, adapters, run) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states and the adapters' gradients of one forward and backward."""
    ids = torch.randint(3, VOCAB - 8, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    hidden = run(attention_inputs(model, ids, positions, [(0, 9), (9, 14)]))
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))
    (hidden * weights).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in adapters.parameters().items()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_fused_step_on_any_format_is_the_plain_step_on_its_dense_weights(name):
    register()
    results = []
    for fused in (False, True):
        model = tiny_model("llama")
        model.config._attn_implementation = "topcoat"
        for path, linear in block_linears(model).items():
            frozen = FrozenLinear.from_dense(linear.weight, None, read_config(SETTINGS[name]), torch.float32)
            if fused:
                model.set_submodule(path, frozen)
            else:
                linear.weight.data = frozen.dense_weight(torch.float32)
        adapters = attach(model, LoraConfig(r=4, lora_alpha=8.0))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        decoder = model.get_submodule(FAMILIES["llama"].decoder)
        fast = fuse(model, "none")
        assert isinstance(fast, FusedModel), fast

        def plain(inputs, decoder=decoder):
            return decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)

        results.append(step(model, adapters, fast.hidden if fused else plain))
    (truth, wanted), (found, gradients) = results
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    for path, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[path], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
