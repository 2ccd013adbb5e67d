"""The loss without logits: torch's cross-entropy in float64 decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topcoat.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def drawn(rows: int, width: int, vocab: int, dtype=torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator) / width**0.5 * 3
    targets = torch.randint(vocab, (rows,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def graded(function, hidden: Tensor, weight: Tensor, *rest) -> list[Tensor]:
    """Loss, gradient of the hidden states, gradient of the weight; the loss scaled as training scales it."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = function(hidden, weight, *rest)
    return [loss.detach(), *torch.autograd.grad(loss * 0.125, [hidden, weight])]


def off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize(
    ("rows", "vocab"), [(40, 1000), (5, 151_936), pytest.param(70, 262_144, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_loss_and_gradients_are_those_of_float64(rows, vocab, softcap):
    hidden, weight, targets = drawn(rows, 24, vocab)
    truth = graded(linear_cross_entropy_reference, hidden.double(), weight.double(), targets, softcap)
    found = graded(linear_cross_entropy, hidden, weight, targets, softcap, 3)
    assert off(found[0], truth[0]) < 1e-6
    assert all(off(f, t) < 1e-5 for f, t in zip(found[1:], truth[1:], strict=True))


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.5, 2.0, 0.0, 1.0, 1.0], [0.0] * 7, [1.0] * 7], ids=str)
def test_each_row_counts_as_much_as_its_weight_says(weights, softcap):
    hidden, weight, targets = drawn(7, 24, 90)
    options = (1.5, 0.1, torch.tensor(weights))
    truth = graded(linear_cross_entropy_reference, hidden.double(), weight.double(), targets, softcap, *options)
    found = graded(linear_cross_entropy, hidden, weight, targets, softcap, 3, *options)
    for f, t in zip(found, truth, strict=True):
        torch.testing.assert_close(f.double(), t, rtol=1e-5, atol=1e-5)
    assert not found[1][torch.tensor(weights) == 0].any()


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_in_bf16_it_is_at_most_twice_as_far_off_as_the_definition_in_bf16(softcap):
    hidden, weight, targets = drawn(60, 32, 500, torch.bfloat16)
    truth = graded(linear_cross_entropy_reference, hidden.double(), weight.double(), targets, softcap)
    plain = graded(linear_cross_entropy_reference, hidden, weight, targets, softcap)
    found = graded(linear_cross_entropy, hidden, weight, targets, softcap)
    for f, p, t in zip(found, plain, truth, strict=True):
        assert off(f, t) <= 2 * max(off(p, t), 2.0**-9)


def test_the_loss_of_bf16_products_is_summed_in_float32():
    hidden, weight, targets = drawn(300, 16, 64, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    logits = (hidden @ weight.T).double()
    assert off(loss, torch.nn.functional.cross_entropy(logits, targets, reduction="sum")) < 1e-6


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_is_right_in_double_precision(softcap):
    hidden, weight, targets = drawn(5, 4, 7, torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, softcap, 2), (hidden, weight))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.none() | st.floats(1, 50), st.integers(0, 9))
def test_the_size_of_a_chunk_changes_nothing_beyond_rounding(rows, chunk_rows, softcap, seed):
    hidden, weight, targets = drawn(rows, 8, 33, seed=seed)
    whole = graded(linear_cross_entropy, hidden, weight, targets, softcap, 1000)
    parts = graded(linear_cross_entropy, hidden, weight, targets, softcap, chunk_rows)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_frozen_weight_gets_no_gradient_and_none_is_computed_without_grad():
    hidden, weight, targets = drawn(6, 8, 33)
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_no_rows_are_a_loss_of_zero_with_gradients_of_zero():
    hidden, weight, targets = drawn(0, 8, 33)
    loss, grad_hidden, grad_weight = graded(linear_cross_entropy, hidden, weight, targets)
    assert (float(loss), tuple(grad_hidden.shape), float(grad_weight.abs().max())) == (0.0, (0, 8), 0.0)


def test_logits_that_overflow_an_exponential_are_no_trouble():
    hidden, weight, targets = drawn(4, 8, 33)
    loss, grad, _ = graded(linear_cross_entropy, hidden * 1e4, weight, targets)
    truth = linear_cross_entropy_reference(hidden.double() * 1e4, weight.double(), targets)
    assert off(loss, truth) < 1e-5
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_smoothing_is_torchs_in_loss_and_gradients(softcap, dtype):
    hidden, weight, targets = drawn(70, 24, 500, dtype)
    rest = softcap, 1.5, 0.1
    truth = graded(linear_cross_entropy_reference, hidden.double(), weight.double(), targets, *rest)
    plain = graded(linear_cross_entropy_reference, hidden.double(), weight.double(), targets, softcap, 1.5)
    found = graded(linear_cross_entropy, hidden, weight, targets, softcap, 32, 1.5, 0.1)
    most = 1e-5 if dtype == torch.float32 else 2.0**-6
    assert all(off(f, t) < most for f, t in zip(found, truth, strict=True))
    assert off(plain[0], truth[0]) > 1e-3  # the smoothing shows in the loss
    assert off(plain[1], truth[1]) > 1e-3


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_with_label_smoothing_is_right_in_double_precision(softcap):
    hidden, weight, targets = drawn(5, 4, 7, torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, softcap, 2, 1.3, 0.2), (hidden, weight)
    )
