"""The learning rate as a function of the step: written out, and against transformers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from transformers import get_linear_schedule_with_warmup as get_linear

from topcoat.adapters.prompt_methods import PROMPTS
from topcoat.adapters.settings import Adapter
from topcoat.training.schedule import default_learning_rate, learning_rate, warmup_steps
from topcoat.training.settings import TrainSettings


def test_a_cosine_of_ten_steps_after_two_of_warm_up():
    rates = [learning_rate(step, 10, 2, 1.0, "cosine") for step in range(11)]
    expected = [0.5, 1.0] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert rates[10] == pytest.approx(0, abs=1e-15)


def test_a_line_and_a_constant():
    assert [learning_rate(s, 4, 0, 2.0, "linear") for s in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert [learning_rate(s, 4, 2, 2.0, "constant") for s in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]


THEIRS = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear}


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.data(), st.sampled_from(["cosine", "linear", "constant"]))
def test_it_is_transformers_schedule_with_a_first_step_that_learns(total, data, shape):
    warmup = data.draw(st.integers(0, total - 1))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    if shape == "constant":
        theirs = get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        theirs = THEIRS[shape](optimizer, warmup, total)
    for step in range(total):
        mine, rate = learning_rate(step, total, warmup, 0.5, shape), theirs.get_last_lr()[0]
        if step >= warmup:
            assert mine == pytest.approx(rate, rel=1e-12, abs=1e-12)
        else:  # theirs begins at 0 / W, so its first step learns nothing; ours at 1 / W
            assert mine == pytest.approx(rate + 0.5 / warmup)
        assert 0 < mine <= 0.5
        optimizer.step()
        theirs.step()


def test_warm_up_is_a_share_of_the_run_or_a_number_of_steps():
    assert warmup_steps(TrainSettings(warmup_ratio=0.1), 57) == 6
    assert warmup_steps(TrainSettings(warmup_ratio=0.03), 10) == 0
    assert warmup_steps(TrainSettings(warmup_steps=7), 57) == 7
    assert warmup_steps(TrainSettings(warmup_steps=70), 57) == 57
    assert learning_rate(56, 57, 57, 1.0, "cosine") == 1.0


@pytest.mark.parametrize(("parameters", "rate"), [(135e6, 1e-3), (1.1e9, 5e-4), (3e9, 3e-4), (8e9, 2e-4), (32e9, 1e-4)])
def test_the_default_rate_falls_with_size_and_goes_by_the_method(parameters, rate):
    def of(method, **settings):
        adapter = TypeAdapter(Adapter).validate_python({"method": method, **settings})
        return default_learning_rate(adapter, int(parameters)) / rate

    assert of("lora") == of("dora") == 1
    assert of("full") == pytest.approx(0.1)
    for method in (*PROMPTS, "vera", "ia3"):
        assert of(method) == pytest.approx(10)
    assert of("qalora") == pytest.approx(16)
    assert of("adalora") == pytest.approx(4)
    assert of("miss") == pytest.approx(0.25)
    assert of("lora", loraplus_lr_ratio=16) == pytest.approx(1 / 8)  # so that B learns twice as fast
    assert of("lora", loraplus_lr_ratio=1.5) == 1
