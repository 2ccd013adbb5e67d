"""LoRA and rsLoRA: the scale, the start, the dropout, and an invariance that only a right scale has."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.lora import Lora, lora_scale
from topcoat.adapters.settings import LoraConfig
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig


def layer(config: LoraConfig, seed: int = 1) -> Lora:
    weight = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    made = Lora(FrozenLinear.from_dense(weight, None, DenseConfig(format="fp32"), torch.float32), config)
    made.reset(torch.Generator().manual_seed(seed))
    return made


def test_the_scale_is_alpha_over_r_and_over_its_root_for_rslora():
    assert lora_scale(LoraConfig(r=64, lora_alpha=64)) == 1
    assert lora_scale(LoraConfig(r=64, lora_alpha=64, use_rslora=True)) == 8
    assert lora_scale(LoraConfig(r=16, lora_alpha=32)) == 2


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_output_is_the_papers_formula(use_rslora):
    config = LoraConfig(r=9, lora_alpha=6, use_rslora=use_rslora)
    lora = layer(config)
    torch.nn.init.normal_(lora.lora_B)
    x = torch.randn(4, 30)
    s = 6 / 3 if use_rslora else 6 / 9
    W, A, B = (t.detach().double() for t in (lora.base.dense_weight(torch.float32), lora.lora_A, lora.lora_B))
    assert_close(lora(x).double(), x.double() @ (W + s * B @ A).T, rtol=1e-5, atol=1e-5)


def test_lora_a_starts_uniform_in_one_over_root_in_features_and_lora_b_at_zero():
    lora = layer(LoraConfig(r=200))
    bound = 1 / math.sqrt(30)
    assert float(lora.lora_A.detach().abs().max()) <= bound
    assert float(lora.lora_A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not lora.lora_B.any()


def test_dropout_acts_on_the_adapters_input_alone_and_only_in_training():
    lora = layer(LoraConfig(r=4, lora_dropout=0.5))
    torch.nn.init.normal_(lora.lora_B)
    x = torch.randn(6, 30)
    plain = layer(LoraConfig(r=4))
    plain.load_state_dict(lora.state_dict())
    lora.eval()
    assert_close(lora(x), plain(x))
    lora.train()
    torch.manual_seed(0)
    found = lora(x)
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(x, 0.5)
    assert_close(found, lora.base(x) + lora.scale * (kept @ lora.lora_A.T @ lora.lora_B.T))
    assert not torch.allclose(found, plain(x))


def run(p: float, q: float, steps: int = 12) -> torch.Tensor:
    """Outputs after Adam (eps ~ 0) from A0 * p, with rates of A and B times p and q and alpha over p q."""
    lora = layer(LoraConfig(r=4, lora_alpha=8 / (p * q)))
    with torch.no_grad():
        lora.lora_A.mul_(p)
    lora.double()
    lora.base.compute_dtype = torch.float64
    groups = [{"params": [lora.lora_A], "lr": 1e-2 * p}, {"params": [lora.lora_B], "lr": 1e-2 * q}]
    optimizer = torch.optim.Adam(groups, eps=1e-300)
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (30, 10))
    for _ in range(steps):
        optimizer.zero_grad()
        (lora(x) - y).square().mean().backward()
        optimizer.step()
    return lora(x).detach()


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_run_is_the_same_in_other_units_of_a_and_b(p, q):
    assert_close(run(p, q), run(1, 1), rtol=1e-6, atol=1e-6)


def test_the_start_is_a_function_of_seed_and_path(load):
    first, again = (attach(load().model, LoraConfig(r=4), seed=7) for _ in range(2))
    some = attach(load().model, LoraConfig(r=4, target_modules=["v_proj"]), seed=7)
    other = attach(load().model, LoraConfig(r=4), seed=8)
    a, b = first.parameters(), again.parameters()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(a[name], tensor) for name, tensor in some.parameters().items())
    starts = [tensor for name, tensor in a.items() if name.endswith("lora_A") and tensor.shape[1] == 64]
    assert not any(torch.equal(starts[0], start) for start in starts[1:])
    name = next(iter(a))
    assert not torch.equal(a[name], other.parameters()[name])


def test_attaching_leaves_torchs_random_numbers_as_they_were(load):
    base = load()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    attach(base.model, LoraConfig(r=4))
    assert torch.equal(torch.get_rng_state(), before)
