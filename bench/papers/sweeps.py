"""A sweep of learning rates and its optimum. No torch here.

The optimum is the rate of the lowest loss. Between neighbours of a grid in equal factors it is refined by the parabola
through the three lowest points in log(rate), which says how far the optima of two sweeps lie apart when both fall on
the same grid point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Sweep:
    """The same arm at rising learning rates. Its arms run side by side until something of it is read."""

    rates: Sequence[float]
    arms: Sequence[Mapping[str, Any]]

    @cached_property
    def losses(self) -> list[float]:
        """Of each arm; NaN of a run that diverged."""
        return [arm["loss"] for arm in self.arms]

    @property
    def at(self) -> int:
        """Where the lowest loss is."""
        return min(range(len(self.rates)), key=lambda i: self.losses[i] if math.isfinite(self.losses[i]) else math.inf)

    @property
    def best(self) -> float:
        """The rate of the lowest loss."""
        return self.rates[self.at]

    @property
    def loss(self) -> float:
        """The lowest loss."""
        return self.losses[self.at]

    @property
    def arm(self) -> Mapping[str, Any]:
        """The arm of the lowest loss."""
        return self.arms[self.at]

    @property
    def is_inside(self) -> bool:
        """Whether the grid goes on to both sides of its best rate: else the optimum may lie outside."""
        return 0 < self.at < len(self.rates) - 1

    @property
    def optimum(self) -> float:
        """The best rate, refined by a parabola in log(rate) where its neighbours are there and finite."""
        if not self.is_inside:
            return self.best
        low, here, high = self.losses[self.at - 1 : self.at + 2]
        bend = low - 2 * here + high
        if not math.isfinite(bend) or bend <= 0:
            return self.best
        step = math.log(self.rates[self.at + 1] / self.rates[self.at])
        return self.best * math.exp(step * 0.5 * (low - high) / bend)

    def points(self) -> list[tuple[float, float]]:
        """(rate, loss) of what is finite, for a plot."""
        return [(r, loss) for r, loss in zip(self.rates, self.losses, strict=True) if math.isfinite(loss)]

    def say(self) -> str:
        """0.001, or that the optimum may lie beyond the grid."""
        return f"{self.best:.3g}" + ("" if self.is_inside else " (at the grid's end)")


def factor_grid(low: float, count: int, factor: float = 2.0) -> tuple[float, ...]:
    """`count` rates from `low` up, each `factor` times the one before, to three digits."""
    return tuple(float(f"{low * factor**i:.3g}") for i in range(count))
