"""Blocks whose compiled calls wait for each other: the same bits, and torch touches no number while one waits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig, QaloraConfig
from topcoat.kernels.native import calls
from topcoat.kernels.native.library import native_library
from topcoat.kernels.offload import make_shelf
from topcoat.kernels.recompute import LADDER_WITH_HOST
from topcoat.model.attention import attention_inputs, register
from topcoat.model.blocks import LAYOUTS
from topcoat.model.fill import block_linears
from topcoat.model.fuse import FusedModel, fuse
from topcoat.model.tiny import VOCAB, tiny_model
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import read_config

pytestmark = pytest.mark.skipif(native_library() is None, reason="there is no compiled library here")

LOOKS = {  # operations that read and write no number
    *("empty", "empty_strided", "new_empty", "empty_like", "view", "_unsafe_view", "slice", "select", "detach"),
    *("alias", "as_strided", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "split_with_sizes"),
    *("split", "unbind", "unflatten", "_reshape_alias", "is_same_size"),
}
GAPS, WHOLE, TOKENS = [(0, 40), (40, 1), (45, 27)], [(0, 40), (40, 35)], 75
"""Documents with gaps between and behind them, and without."""
ROWS = torch.tensor([3, 4, 18, 30, 39, 46, 71, *range(5, 38)])
BATCHES = [(GAPS, None), (WHOLE, None), (WHOLE, ROWS)]
LORA = {"r": 4, "lora_alpha": 8.0}
CASES = {
    **{name: (name, LoraConfig(**LORA), None) for name in sorted(LAYOUTS)},
    "biases": ("llama", LoraConfig(**LORA), None),
    "dropout": ("llama", LoraConfig(**LORA, lora_dropout=0.2), None),
    "a frozen A": ("llama", LoraConfig(**LORA, freeze_lora_a=True), None),
    "one layer": ("llama", LoraConfig(**LORA, layers_to_transform=[1], exclude_modules=["up_proj"]), None),
    "nf4": ("qwen2", LoraConfig(**LORA), {"format": "nf4"}),
    "nf4 and nested scales": ("llama", LoraConfig(**LORA), {"format": "nf4", "double_quant": True}),
    "nf4-icq": ("llama", LoraConfig(**LORA), {"format": "nf4-icq"}),
    "int8": ("llama", LoraConfig(**LORA), {"format": "int8"}),
    "qalora": ("llama", QaloraConfig(**LORA, qalora_group_size=16), {"format": "int4", "group_size": 16}),
}


class NothingWaits(TorchDispatchMode):
    """Fails where torch touches numbers that a waiting call may be about to read or write."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not calls.waits() or func._schema.name.removeprefix("aten::") in LOOKS, f"{func} while calls wait"
        return func(*args, **(kwargs or {}))


def made(name: str, config: LoraConfig, quantization: dict | None, dtype: torch.dtype, **sizes):
    register()
    model = tiny_model(name, dtype=dtype, **sizes)
    model.config._attn_implementation = "topcoat"
    if quantization is not None:
        for path, linear in block_linears(model).items():
            bias = None if linear.bias is None else linear.bias.detach()
            model.set_submodule(path, FrozenLinear.from_dense(linear.weight, bias, read_config(quantization), dtype))
    adapters = attach(model.train(), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, adapters


@pytest.mark.parametrize(
    ("policy", "dtype"), [*((policy, torch.bfloat16) for policy in LADDER_WITH_HOST), ("block", torch.float32)]
)
@pytest.mark.parametrize("case", CASES)
def test_waiting_calls_give_the_same_bits_and_torch_touches_nothing_meanwhile(case, policy, dtype, monkeypatch):
    name, config, quantization = CASES[case]
    biases = {"attention_bias": True, "mlp_bias": True} if case == "biases" else {}
    model, adapters = made(name, config, quantization, dtype, **biases)
    fused = fuse(model, policy, partial(make_shelf, torch.device("cpu")))
    assert isinstance(fused, FusedModel), fused
    ids = torch.randint(3, VOCAB - 8, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    for spans, rows in BATCHES:
        positions = torch.zeros(1, TOKENS, dtype=torch.int64)
        for start, length in spans:
            positions[0, start : start + length] = torch.arange(length)
        inputs = attention_inputs(model, ids, positions, spans)
        answers = []
        for most in (1, 10**6):
            monkeypatch.setattr(calls, "MOST", most)
            torch.manual_seed(5)
            with NothingWaits():
                hidden = fused.hidden(inputs, rows)
                hidden.float().square().sum().backward()
            answers.append([hidden.detach(), *(p.grad for p in adapters.parameters().values())])
            for parameter in adapters.parameters().values():
                parameter.grad = None
        for one, other in zip(*answers, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
