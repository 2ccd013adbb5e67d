"""Planned bytes of activations are allocated bytes, for every family and policy."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.kernels.offload import make_shelf
from topcoat.kernels.recompute import LADDER_WITH_HOST, choose, held_bytes
from topcoat.model.attention import attention_inputs, register
from topcoat.model.blocks import LAYOUTS
from topcoat.model.fuse import block_sizes, fuse
from topcoat.model.tiny import tiny_model
from topcoat.planning.activations import Ranks, kept_bytes, working_bytes
from topcoat.planning.counts import BlockCounts
from topcoat.planning.sizes import fitting_policies

TOKENS = 256


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("policy", [*LADDER_WITH_HOST, "mixed"])
@pytest.mark.parametrize("rows", [TOKENS, 64])
def test_planned_bytes_are_the_arenas_bytes(name: str, policy: str, rows: int) -> None:
    register()
    model = tiny_model(name, layers=4)
    model.config._attn_implementation = "topcoat"
    attach(model, LoraConfig(r=4))
    policies = ["block", "qkv", "mlp", "none"] if policy == "mixed" else [policy] * 4
    fused = fuse(model, policies, partial(make_shelf, torch.device("cpu")))
    inputs = attention_inputs(model, torch.arange(TOKENS)[None] + 3, torch.arange(TOKENS)[None], [(0, TOKENS)])
    wanted = None if rows == TOKENS else torch.arange(rows)
    fused.hidden(inputs, wanted).sum().backward()
    sizes = block_sizes(model)
    ranks = [Ranks(*(p.rank for p in block.projections)) for block in fused.decoder.blocks]
    sizing = sizes, ranks, policies, TOKENS, rows, 4
    planned = kept_bytes(*sizing) + working_bytes(*sizing)
    log_sum_exps = TOKENS * 4 * sum(size.log_sum_exps(p) for size, p in zip(sizes, policies, strict=True))
    embedding = TOKENS * sizes[0].hidden * 4  # the first layer's input, which is the embedding's own tensor
    slots = 2 * embedding if policy == "offload" else 0  # of a GPU's ring
    allocated = fused.decoder.nbytes() + log_sum_exps + embedding + slots
    assert planned == pytest.approx(allocated, rel=0 if rows == TOKENS else 0.06)


def test_the_cheapest_policies_within_a_budget_bottom_layers_first() -> None:
    model = tiny_model("llama", layers=4)
    sizes = block_sizes(model)
    everything = sum(size.token_bytes("none") for size in sizes) * 10
    assert choose(sizes, 10, everything) == ["none"] * 4
    assert choose(sizes, 10, everything - 1) == ["mlp", "none", "none", "none"]
    assert choose(sizes, 10, 0) == ["block"] * 4
    held = [
        sum(s.token_bytes(p) for s, p in zip(sizes, choose(sizes, 10, budget), strict=True)) * 10
        for budget in range(0, everything, everything // 20)
    ]
    assert held == sorted(held)
    for budget in range(held[0], everything, everything // 20):
        chosen = choose(sizes, 10, budget)
        assert sum(s.token_bytes(p) for s, p in zip(sizes, chosen, strict=True)) * 10 <= budget


def test_beside_a_gpu_inputs_wait_in_host_memory_where_nothing_else_fits() -> None:
    sizes = block_sizes(tiny_model("llama", layers=4)) * 4
    blocks = BlockCounts(tuple(sizes), (Ranks.of_rank(4),) * 16, stacked=0)

    def chosen(room: float, on_gpu: bool = True) -> list[str]:
        return fitting_policies(blocks, TOKENS, TOKENS, room, 2, on_gpu)

    def taken(policies: list[str]) -> int:
        sizing = sizes, blocks.ranks, policies, TOKENS, TOKENS, 2
        return kept_bytes(*sizing) + working_bytes(*sizing)

    least, half = taken(["block"] * 16), ["offload"] * 8 + ["block"] * 8
    assert chosen(least) == ["block"] * 16
    assert chosen(1e12) == ["none"] * 16
    assert taken(half) < least
    assert chosen(taken(half)) == half
    assert held_bytes(sizes, chosen(0), TOKENS) == 0
    assert chosen(taken(half), on_gpu=False) == ["block"] * 16


def test_few_layers_keep_their_inputs_since_the_way_to_the_host_takes_more() -> None:
    sizes = block_sizes(tiny_model("llama", layers=4))
    blocks = BlockCounts(tuple(sizes), (Ranks.of_rank(4),) * 4, stacked=0)
    assert fitting_policies(blocks, TOKENS, TOKENS, 0, 2, True) == ["block"] * 4
