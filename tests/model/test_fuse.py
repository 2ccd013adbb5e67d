"""The hand-written blocks against transformers' own layers with plain autograd: values and gradients, every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters, attach
from topcoat.adapters.settings import LoraConfig
from topcoat.kernels.recompute import LADDER
from topcoat.model.attention import attention_inputs, register
from topcoat.model.blocks import LAYOUTS
from topcoat.model.families import FAMILIES
from topcoat.model.fuse import FusedModel, fuse
from topcoat.model.tiny import VOCAB, tiny_model

FAMILY_NAMES = sorted(LAYOUTS)


def adapted(name: str, dtype: torch.dtype = torch.float32, **lora) -> tuple[torch.nn.Module, Adapters]:
    """A tiny model of the family with LoRA whose B is not zero."""
    register()
    model = tiny_model(name, dtype=dtype)
    model.config._attn_implementation = "topcoat"
    adapters = attach(model, LoraConfig(**{"r": 4, "lora_alpha": 8.0, **lora}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, adapters


def batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """input_ids and position_ids (1, T) of documents side by side, and their spans."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB - 8, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    return ids, positions, list(zip(starts, lengths, strict=True))


def hidden_and_gradients(run, model, adapters: Adapters, lengths: list[int], rows: Tensor | None = None):
    """Hidden states of `rows`, and the gradients of a fixed random projection of them."""
    inputs = attention_inputs(model, *batch(lengths))
    hidden = run(inputs)
    weights = torch.randn(sum(lengths), hidden.shape[-1], generator=torch.Generator().manual_seed(9)).to(hidden.dtype)
    weights = weights if rows is None else weights[rows]
    (hidden * weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in adapters.parameters().items()}
    for parameter in adapters.parameters().values():
        parameter.grad = None
    return hidden.detach(), grads


def plain(model, rows: Tensor | None = None):
    decoder = model.get_submodule(FAMILIES[model.config.model_type].decoder)

    def run(inputs):
        states = decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        return states if rows is None else states[rows]

    return run


def fast(model, policy="none") -> FusedModel:
    fused = fuse(model, policy)
    assert isinstance(fused, FusedModel), fused
    return fused


def assert_same(found, truth, tolerance: float) -> None:
    scale = float(truth[0].abs().max())
    assert float((found[0] - truth[0]).abs().max()) <= tolerance * scale
    for name, gradient in truth[1].items():
        largest = float(gradient.abs().max())
        assert largest > 0, f"{name} has no gradient to compare"
        assert float((found[1][name] - gradient).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("policy", LADDER)
def test_the_fast_path_equals_transformers(name: str, policy: str) -> None:
    model, adapters = adapted(name)
    lengths = [40, 1, 23]
    truth = hidden_and_gradients(plain(model), model, adapters, lengths)
    found = hidden_and_gradients(fast(model, policy).hidden, model, adapters, lengths)
    assert_same(found, truth, 1e-5)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_all_policies_give_the_same_bits(name: str) -> None:
    model, adapters = adapted(name)
    answers = [hidden_and_gradients(fast(model, policy).hidden, model, adapters, [31, 17]) for policy in LADDER]
    mixed = fuse(model, ["block", "mlp"])
    answers.append(hidden_and_gradients(mixed.hidden, model, adapters, [31, 17]))
    for hidden, grads in answers[1:]:
        assert torch.equal(hidden, answers[0][0])
        assert all(torch.equal(grads[n], answers[0][1][n]) for n in grads)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("policy", ["none", "block"])
def test_a_pruned_last_block_changes_nothing(name: str, policy: str) -> None:
    model, adapters = adapted(name)
    lengths, rows = [19, 26], torch.tensor([3, 4, 18, 30, 41, 44, 0])
    truth = hidden_and_gradients(plain(model, rows), model, adapters, lengths, rows)
    found = hidden_and_gradients(lambda x: fast(model, policy).hidden(x, rows), model, adapters, lengths, rows)
    assert_same(found, truth, 1e-5)


VARIANTS = {
    "a frozen A": {"freeze_lora_a": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora and a frozen A": {"init_lora_weights": "olora", "freeze_lora_a": True, "lora_alpha": 2.0},
    "ranks by pattern": {"rank_pattern": {"k_proj": 1, "0.mlp.up_proj": 7}, "alpha_pattern": {"o_proj": 3}},
    "one layer": {"layers_to_transform": [1], "exclude_modules": ["up_proj"]},
}


@pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("policy", ["none", "block"])
def test_every_variant_of_lora_takes_the_fast_path(lora, policy: str) -> None:
    model, adapters = adapted("llama", **lora)
    truth = hidden_and_gradients(plain(model), model, adapters, [9, 5])
    found = hidden_and_gradients(fast(model, policy).hidden, model, adapters, [9, 5])
    assert_same(found, truth, 2e-5)


def test_offload_without_a_place_for_what_waits_is_refused() -> None:
    model, adapters = adapted("llama")
    with pytest.raises(ValueError, match="policy is offload, and there is no make_shelf"):
        hidden_and_gradients(fast(model, "offload").hidden, model, adapters, [9, 5])


def test_stacked_weights_lie_side_by_side() -> None:
    """Each by itself would fill huge pages of its own, and leave the end of each last one empty."""
    model, _ = adapted("llama")
    places = set()
    for block in fast(model)._stack._decoder.blocks:
        for projection in (block.qkv, block.gate_up):
            with projection.weight.lend(torch.float32) as weight:
                places.add(weight.untyped_storage().data_ptr())
    assert len(places) == 1
