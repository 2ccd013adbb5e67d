"""The fused frozen-plus-low-rank linear, held to its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topcoat.kernels.lora_linear import lora_linear, lora_linear_reference
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, Int8Config, Nf4Config

FORMATS = [DenseConfig(format="fp32"), DenseConfig(format="bf16"), Nf4Config(), Int8Config()]
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=3)


def base_of(config, compute_dtype=torch.float32, out_features=24, in_features=40, seed=0) -> FrozenLinear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    return FrozenLinear.from_dense(weight, torch.randn(out_features, generator=generator), config, compute_dtype)


def factors(r: int, dtype=torch.float32, out_features=24, in_features=40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = [(r, in_features), (out_features, r)]
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]


def graded(function, base, x, A, B, scale) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, A, B)]
    y = function(base, *leaves, scale)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)  # every output counts differently
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 9), st.floats(0.1, 8), st.sampled_from(FORMATS))
def test_values_and_gradients_are_the_definitions(leading, r, scale, config):
    base = base_of(config)
    x = torch.randn(*leading, 40, generator=torch.Generator().manual_seed(1))
    found = graded(lora_linear, base, x, *factors(r), scale)
    truth = graded(lora_linear_reference, base, x, *factors(r), scale)
    for f, t in zip(found, truth, strict=True):
        assert f.shape == t.shape
        torch.testing.assert_close(f, t, rtol=1e-5, atol=1e-5 * float(t.abs().max()))


@pytest.mark.parametrize("config", FORMATS, ids=str)
def test_in_bf16_it_is_at_most_twice_as_far_off_as_the_definition_in_bf16(config):
    base = base_of(config, torch.bfloat16)
    exact = base_of(config, torch.float64)
    x = torch.randn(50, 40).bfloat16()
    A, B = factors(8)
    A, B = (t.detach().bfloat16().float() for t in (A, B))
    truth = graded(lora_linear_reference, exact, x.double(), A.double(), B.double(), 2.0)
    plain = graded(lora_linear_reference, base, x, A, B, 2.0)
    for f, p, t in zip(graded(lora_linear, base, x, A, B, 2.0), plain, truth, strict=True):
        error, its = (float((v.double() - t).abs().max() / t.abs().max()) for v in (f, p))
        assert error <= 2 * max(its, 2.0**-9)


@pytest.mark.parametrize("config", [DenseConfig(format="fp32"), Nf4Config()], ids=str)
def test_the_gradient_is_right_in_double_precision(config):
    base = base_of(config, torch.float64, 5, 7)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    A, B = (t.detach().requires_grad_() for t in factors(2, torch.float64, 5, 7))
    assert torch.autograd.gradcheck(lambda *t: lora_linear(base, *t, 1.5), (x, A, B))


def test_masters_keep_their_dtype_and_their_gradients_too():
    A, B = factors(4)
    x = torch.randn(6, 40, dtype=torch.bfloat16)
    y = lora_linear(base_of(Nf4Config(), torch.bfloat16), x, A, B, 2.0)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert (A.grad.dtype, B.grad.dtype) == (torch.float32, torch.float32)


def test_no_rows_are_no_trouble():
    A, B = factors(4)
    y = lora_linear(base_of(Nf4Config()), torch.randn(0, 3, 40), A, B, 2.0)
    y.sum().backward()
    assert y.shape == (0, 3, 24)
    assert float(B.grad.abs().max()) == 0.0


def test_only_what_trains_gets_a_gradient():
    A, B = factors(4)
    A.requires_grad_(False)
    lora_linear(base_of(Nf4Config()), torch.randn(2, 40), A, B, 2.0).sum().backward()
    assert A.grad is None
    assert B.grad is not None
