"""AdamW behind names: torch's own, bit for bit, with a state that can be read and put back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topcoat.errors import TopcoatError
from topcoat.training.optimizer import Optimizer
from topcoat.training.settings import TrainSettings

SETTINGS = TrainSettings(weight_decay=0.1, adam_beta2=0.99)


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in [("a", (5, 3)), ("b", (7,))]}


def give_gradients(some: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in some.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10 ** (step % 5 - 3)


def rate(step: int) -> float:
    return 1e-2 * (1 + math.cos(step / 20)) / 2


def test_two_hundred_steps_are_torchs_adamw_bit_for_bit():
    ours, theirs = parameters(), parameters()
    mine = Optimizer(ours, SETTINGS)
    torchs = torch.optim.AdamW(theirs.values(), betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(200):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        mine.step(rate(step))
        for group in torchs.param_groups:
            group["lr"] = rate(step)
        torchs.step()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert mine.steps == 200


def test_two_hundred_steps_are_the_papers_formula_in_float64():
    ours = parameters()
    start = {name: p.detach().double() for name, p in ours.items()}
    mine = Optimizer(ours, SETTINGS)
    m = {name: torch.zeros_like(p) for name, p in start.items()}
    v = {name: torch.zeros_like(p) for name, p in start.items()}
    for step in range(200):
        give_gradients(ours, step)
        for name, p in start.items():
            g = ours[name].grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g * g
            bias1, bias2 = 1 - 0.9 ** (step + 1), 1 - 0.99 ** (step + 1)
            p -= rate(step) * (m[name] / bias1 / ((v[name] / bias2).sqrt() + 1e-8) + 0.1 * p)
        mine.step(rate(step))
    for name, p in start.items():
        torch.testing.assert_close(ours[name].detach().double(), p, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("after", [0, 1, 13])
def test_a_state_put_back_goes_on_bit_for_bit(after):
    ours = parameters()
    optimizer = Optimizer(ours, SETTINGS)
    for step in range(after):
        give_gradients(ours, step)
        optimizer.step(rate(step))
    kept = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    again = {name: nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    restored = Optimizer(again, SETTINGS)
    restored.load(kept, optimizer.steps)
    for step in range(after, after + 10):
        for some, with_state in ((ours, optimizer), (again, restored)):
            give_gradients(some, step)
            with_state.step(rate(step))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert all(torch.equal(t, restored.state()[name]) for name, t in optimizer.state().items())
    assert restored.steps == optimizer.steps


def test_moments_are_there_from_the_start_by_name():
    optimizer = Optimizer(parameters(), SETTINGS)
    assert sorted(optimizer.state()) == ["a.exp_avg", "a.exp_avg_sq", "b.exp_avg", "b.exp_avg_sq"]
    assert not any(bool(tensor.any()) for tensor in optimizer.state().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("b.exp_avg_sq"), "1 moments missing, 0 unknown, 0 of another shape (first: b.exp_avg_sq)"),
        (lambda s: s.update({"c.exp_avg": torch.zeros(1)}), "0 moments missing, 1 unknown"),
        (lambda s: s.update({"a.exp_avg": torch.zeros(5, 4)}), "1 of another shape (first: a.exp_avg)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    optimizer = Optimizer(parameters(), SETTINGS)
    state = {name: torch.ones_like(tensor) for name, tensor in optimizer.state().items()}
    change(state)
    with pytest.raises(TopcoatError) as caught:
        optimizer.load(state, 3)
    assert message in str(caught.value)
    assert "resume with the recipe the run was started with" in str(caught.value)
    assert not any(bool(tensor.any()) for tensor in optimizer.state().values())
    assert optimizer.steps == 0


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 9))
def test_clipping_scales_the_whole_gradient_down_to_the_norm_and_never_up(size, max_norm, seed):
    ours = parameters()
    optimizer = Optimizer(ours, SETTINGS)
    give_gradients(ours, seed)
    for p in ours.values():
        p.grad.mul_(size)
    before = torch.cat([p.grad.flatten() for p in ours.values()]).double()
    norm = optimizer.clip(max_norm)
    after = torch.cat([p.grad.flatten() for p in ours.values()]).double()
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    expected = before * min(1.0, max_norm / float(before.norm()))
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-12)


def test_without_a_norm_nothing_is_clipped_but_the_norm_is_told():
    ours = parameters()
    optimizer = Optimizer(ours, SETTINGS)
    give_gradients(ours, 4)
    before = [p.grad.clone() for p in ours.values()]
    assert optimizer.clip(None) > 1
    assert all(torch.equal(p.grad, old) for p, old in zip(ours.values(), before, strict=True))


def test_gradients_are_forgotten_after_a_step():
    ours = parameters()
    optimizer = Optimizer(ours, SETTINGS)
    give_gradients(ours, 0)
    optimizer.step(1e-3)
    assert all(p.grad is None for p in ours.values())
    assert optimizer.clip(1.0) == 0.0


def test_a_thousand_steps_of_a_millionth_still_move_a_weight():
    weight = {"w": nn.Parameter(torch.ones(4))}
    optimizer = Optimizer(weight, TrainSettings())
    for _ in range(1000):
        weight["w"].grad = torch.ones(4)
        optimizer.step(1e-6)
    torch.testing.assert_close(weight["w"].detach(), torch.full((4,), 1 - 1e-3), rtol=1e-4, atol=1e-5)
