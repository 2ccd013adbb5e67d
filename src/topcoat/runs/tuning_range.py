"""The learning-rate range test: the rate rises from step to step, and the loss says where training works.

    rate of step i of n = low * (high / low) ** (i / (n - 1))

The losses are smoothed by an exponential mean, weight 0.3 for the newest, divided by the sum of its weights. The rate
at its lowest point is the highest worth trying, and a thirtieth of it the lowest. The test ends where the smoothed loss
is half as high again as at its lowest. Smith 2015, arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.data.batches import Batch
from topcoat.recipe.schema import Recipe
from topcoat.runs.compute import make_loss
from topcoat.runs.opening import RunPlan
from topcoat.runs.tuning_space import Range
from topcoat.runs.tuning_trial import Bench
from topcoat.training.halving import half
from topcoat.training.memory import free_leftovers
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.rng import private_randomness, seed_micro_batch

NEWEST = 0.3
WORSE = 1.5
FEWEST, MOST = 8, 60
"""Steps of the test."""
WARM = 3
"""Steps at the lowest rate, before it rises: they show how long a step takes."""
LATE = 2.0
"""Times the time that was meant for it, after which the test ends before its last rate."""
HIGHEST = 0.9
"""A rate of 1 is none."""
SPAN = 30.0
"""Highest rate worth trying / lowest."""


@dataclass(frozen=True)
class RangeTest:
    """What the test saw."""

    points: tuple[tuple[float, float], ...]
    """(rate, smoothed loss)."""
    low: float
    high: float
    """Rates between which training works."""
    step_seconds: float


def rates(low: float, high: float, steps: int) -> list[float]:
    """`steps` rates from `low` to `high`, each the same multiple of the one before."""
    return [low * (high / low) ** (i / max(1, steps - 1)) for i in range(steps)]


def smoothed(losses: list[float]) -> list[float]:
    """The exponential mean up to each loss."""
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = (1 - NEWEST) * total + NEWEST * loss, (1 - NEWEST) * weight + NEWEST
        means.append(total / weight)
    return means


def narrowed(points: tuple[tuple[float, float], ...], within: Range) -> Range:
    """The part of `within` that the test found to work; all of it where the loss never fell."""
    if len(points) < 3:
        return within
    best_rate, best = min(points, key=lambda point: point[1])
    if not best < points[0][1]:
        return within
    high = min(within.high, best_rate)
    low = max(within.low, high / SPAN)
    return Range(float(f"{low:.2g}"), float(f"{high:.2g}"), log=True) if low < high else within


def range_test(bench: Bench, recipe: Recipe, within: Range, seconds: float) -> RangeTest:
    """Raise the rate from the start of `within` to ten times its end, in about `seconds`."""
    with bench.attached(recipe) as (adapters, plan):
        points, step_seconds = _raise(bench, recipe, adapters, plan, within, seconds)
    found = narrowed(points, within)
    return RangeTest(points, found.low, found.high, step_seconds)


def _raise(
    bench: Bench, recipe: Recipe, adapters: Adapters, plan: RunPlan, within: Range, seconds: float
) -> tuple[tuple[tuple[float, float], ...], float]:
    loss_of = make_loss(bench.base, adapters, plan.engine.fused, recipe.train)
    optimizer = bench.optimizer(recipe, adapters)
    losses: list[float] = []
    tried: list[float] = []
    ladder = [within.low] * WARM
    times: list[float] = []
    start = time.perf_counter()
    bench.base.model.train()
    with private_randomness(), bench.listener.progress("learning-rate range test", WARM + MOST) as advance:
        for i in range(WARM + MOST):
            began = time.perf_counter()
            if i == WARM:  # the first steps tell how many there is time for
                steps = max(FEWEST, min(MOST, int(seconds / max(1e-6, min(times)))))
                ladder += rates(within.low, min(HIGHEST, 10 * within.high), steps)
            late = i > WARM + FEWEST and time.perf_counter() - start > LATE * seconds
            if i >= len(ladder) or late or bench.stop.stop is not None:
                break
            loss = _gradients(bench, plan, optimizer, loss_of, i)
            norm = optimizer.clip(recipe.train.max_grad_norm, 1.0)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                break
            optimizer.step(ladder[i])
            times.append(time.perf_counter() - began)
            losses.append(loss)
            tried.append(ladder[i])
            means = smoothed(losses)
            advance(i + 1, {})
            if i > WARM + FEWEST and means[-1] > WORSE * min(means):
                break
    points = tuple(zip(tried, smoothed(losses), strict=True))[WARM:]
    return points, sorted(times)[len(times) // 2] if times else 1.0


def _gradients(
    bench: Bench, plan: RunPlan, optimizer: Optimizer, loss_of: Callable[[Batch], Tensor], step: int
) -> float:
    """Mean loss of a step, its gradient added up; in smaller micro batches where memory runs out.

    Raises Refused where one example alone does not fit.
    """
    while True:
        batches = plan.steps.micro_batches(step % plan.steps.total)
        targets = max(1, sum(batch.n_target_tokens for batch in batches))
        loss = 0.0
        try:
            for micro, batch in enumerate(batches):
                seed_micro_batch(plan.steps.plan.seed, step, micro)
                part = loss_of(batch)
                (part / targets).backward()
                loss += float(part.detach()) / targets
            return loss
        except (MemoryError, RuntimeError) as error:
            tokens = half(error, batches)
        free_leftovers()
        optimizer.zero_grad()
        plan.steps.limit(tokens)
        bench.listener.say(f"memory ran out in the range test: micro batches of at most {tokens:,} tokens from here on")
