"""The scale of fp16 gradients: halved when they overflow, doubled when they held for long."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topcoat.training.loss_scale import GROWTH, LossScale


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 65536.0), (torch.bfloat16, 1.0), (torch.float32, 1.0)])
def test_only_fp16_is_scaled(dtype, value):
    assert LossScale.for_dtype(dtype).value == value


def test_unscaling_divides_every_gradient_that_is_there():
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    one.grad = torch.full((3,), 6.0)
    LossScale(4.0).unscale([one, two])
    assert one.grad.tolist() == [1.5] * 3
    assert two.grad is None


def test_an_overflow_halves_it_until_nothing_is_left_to_halve():
    scale = LossScale(4.0, good_steps=9)
    assert scale.overflowed()
    assert (scale.value, scale.good_steps) == (2.0, 0)
    assert scale.overflowed()
    assert not scale.overflowed()
    assert scale.value == 1.0


def test_many_good_steps_double_it_and_a_scale_of_one_stays():
    scale, plain = LossScale(8.0), LossScale(1.0)
    for _ in range(GROWTH):
        scale.succeeded()
        plain.succeeded()
    assert (scale.value, scale.good_steps) == (16.0, 0)
    assert (plain.value, plain.good_steps) == (1.0, 0)
