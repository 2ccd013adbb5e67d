"""Intervals of paired differences, and what a pass line says of them. No torch here: arithmetic.

    over seeds    mean ± t(.975, n - 1) s / sqrt(n) of the differences of runs that share a seed
    over rows     2.5 % to 97.5 % of the difference when rows (or windows of text) are drawn again, with replacement

Each run of a pair sees the same rows, so what is hard for both cancels. An interval that holds 0 tells nothing of the
sign: "not distinguishable".
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t for 95 % on both sides, by degrees of freedom from 1."""
DRAWS = 2000

Summed = Sequence[tuple[float, int]]
"""Of each row or window, the summed loss and the number of tokens that it is the sum over."""
Verdict = Literal["reached", "missed", "not distinguishable", "not measured"]


@dataclass(frozen=True)
class Interval:
    """A difference and where it lies with 95 %."""

    mean: float
    low: float
    high: float
    n: int
    over: str

    @property
    def holds_zero(self) -> bool:
        """Whether the sign is open."""
        return not (self.low > 0 or self.high < 0)

    def times(self, factor: float) -> Interval:
        """The same in another unit."""
        ends = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, ends[0], ends[1], self.n, self.over)

    def say(self, digits: int = 4) -> str:
        """+0.0120 [+0.0071, +0.0169] over 48 windows."""
        number = f"{{:+.{digits}f}}".format
        open_ = ", not distinguishable" if self.holds_zero else ""
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}] over {self.n} {self.over}{open_}"


@dataclass(frozen=True)
class Line:
    """One pass line of an experiment: what was to be reached, what was found, and the verdict."""

    wanted: str
    found: str
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """True only where it was reached."""
        return self.verdict == "reached"

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self) | {"passed": self.passed}


def mean_loss(rows: Summed) -> float:
    """Summed loss over all tokens divided by their number; NaN without any."""
    count = sum(n for _, n in rows)
    return sum(loss for loss, _ in rows) / count if count else math.nan


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of ours - theirs over runs that share a seed; without width to speak of for one seed alone."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n, "seed: no interval")
    reach = T_975[min(n - 1, len(T_975)) - 1] * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, n, "seeds")


def over_rows(ours: Summed, theirs: Summed, what: str = "rows", seed: int = 0, draws: int = DRAWS) -> Interval:
    """Mean loss of ours - theirs in nats a token. Raises ValueError where the two did not see the same rows."""
    if [n for _, n in ours] != [n for _, n in theirs]:
        raise ValueError("the two losses are of different rows")
    draw, count = random.Random(seed), len(ours)
    pairs = [(a - b, n) for (a, n), (b, _) in zip(ours, theirs, strict=True)]
    found = []
    for _ in range(draws):
        chosen = draw.choices(pairs, k=count)
        found.append(sum(d for d, _ in chosen) / sum(n for _, n in chosen))
    low, high = _ends(found)
    return Interval(mean_loss(ours) - mean_loss(theirs), low, high, count, what)


def over_hits(ours: Sequence[bool], theirs: Sequence[bool], seed: int = 0, draws: int = DRAWS) -> Interval:
    """Share of hits of ours - theirs, on the same questions."""
    draw = random.Random(seed)
    pairs = [float(a) - float(b) for a, b in zip(ours, theirs, strict=True)]
    low, high = _ends([statistics.fmean(draw.choices(pairs, k=len(pairs))) for _ in range(draws)])
    return Interval(statistics.fmean(pairs), low, high, len(pairs), "rows")


def _ends(values: list[float]) -> tuple[float, float]:
    values.sort()
    last = len(values) - 1
    return values[round(0.025 * last)], values[round(0.975 * last)]


def below(wanted: str, *differences: Interval, digits: int = 4) -> Line:
    """Reached where every difference lies below 0, interval and all; open where one of them holds 0."""
    found = "; ".join(d.say(digits) for d in differences)
    if all(d.high < 0 for d in differences):
        return Line(wanted, found, "reached")
    wrong = any(d.low > 0 for d in differences)
    return Line(wanted, found, "missed" if wrong else "not distinguishable")


def not_above(wanted: str, *differences: Interval, digits: int = 4) -> Line:
    """Reached unless some difference lies above 0, interval and all: "not worse by more than the interval".

    A single seed has no interval, and so says nothing.
    """
    found = "; ".join(d.say(digits) for d in differences)
    if any(math.isinf(d.high) for d in differences):
        return Line(wanted, found, "not distinguishable")
    return Line(wanted, found, "missed" if any(d.low > 0 for d in differences) else "reached")


def within(wanted: str, values: Sequence[float], low: float, high: float, show: str = "{:.4g}") -> Line:
    """Reached where every value lies in [low, high]; NaN does not."""
    found = ", ".join(show.format(value) for value in values)
    hit = bool(values) and all(low <= value <= high for value in values)
    return Line(wanted, found, "reached" if hit else "missed")
