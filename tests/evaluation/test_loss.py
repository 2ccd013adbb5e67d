"""Mean loss and perplexity: sums over all target tokens, whatever batches they came in."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topcoat.evaluation.loss import mean_loss, perplexity


def batch(losses: list[float]) -> SimpleNamespace:
    return SimpleNamespace(losses=losses, n_target_tokens=len(losses))


def summed(one: SimpleNamespace) -> torch.Tensor:
    return torch.tensor(one.losses, dtype=torch.float64).sum()


@given(st.lists(st.lists(st.floats(0, 20), max_size=9), max_size=9))
def test_the_mean_is_over_tokens_and_not_over_batches(batches):
    tokens = [loss for losses in batches for loss in losses]
    found = mean_loss(summed, [batch(losses) for losses in batches])
    if tokens:
        assert found == pytest.approx(math.fsum(tokens) / len(tokens), rel=1e-9, abs=1e-12)
    else:
        assert math.isnan(found)


def test_no_gradient_is_kept():
    states = []
    mean_loss(lambda one: states.append(torch.is_grad_enabled()) or summed(one), [batch([1.0])])
    assert states == [False]


def test_the_check_is_asked_between_batches_and_may_leave():
    def leave():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        mean_loss(summed, [batch([1.0])], leave)


def test_perplexity_is_the_exponential_of_the_mean():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(49152)) == pytest.approx(49152)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
