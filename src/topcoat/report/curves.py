"""The curves of a run over its steps, as inline SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from topcoat.report.drawing import INK, TRAIN, VALIDATION, drawing

Points = list[tuple[float, float]]
"""(step, value) pairs, both finite, steps rising."""

MOST_POINTS = 800
"""A longer curve is drawn by the means of this many equal spans of steps: more would not show and weigh megabytes."""
LOG_FROM = 20
"""Ratio of the largest loss to the smallest from which the axis is logarithmic: else the end is a line on the floor."""
SMOOTH_FROM = 40
"""Points from which the raw curve is drawn pale, with its moving average over it."""


def points(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The finite values of `name` over the steps; of a step that comes twice (a resumed run) the later line counts."""
    found: dict[float, float] = {}
    for line in metrics:
        step, value = line.get("step"), line.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            found[step] = float(value)
    return sorted(found.items())


def thin(curve: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: means of neighbours, each at the mean of its steps."""
    if len(curve) <= most:
        return curve
    borders = [round(i * len(curve) / most) for i in range(most + 1)]
    spans = [curve[a:b] for a, b in itertools.pairwise(borders)]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in spans]


def smooth(curve: Points, reach: int) -> Points:
    """Mean of each value with up to `reach` neighbours on each side: it lags nowhere.

    The steep first values are widened as much to the right as there are values on the left; the last ones keep the
    neighbours on their left, so that one noisy step does not bend the end.
    """
    sums = [0.0, *itertools.accumulate(value for _, value in curve)]
    averaged = []
    for i, (step, _) in enumerate(curve):
        left, right = min(reach, i), min(reach, i, len(curve) - 1 - i)
        averaged.append((step, (sums[i + right + 1] - sums[i - left]) / (left + right + 1)))
    return averaged


def loss_curves(train: Points, validation: Points, *, name: str, inches: tuple[float, float]) -> str:
    """Training loss of each step and the validation losses, as SVG text."""

    def draw(axes: Axes) -> None:
        if train:
            raw = thin(train)
            if len(raw) >= SMOOTH_FROM:
                axes.plot(*zip(*raw, strict=True), color=TRAIN, linewidth=0.8, alpha=0.35)
                axes.plot(
                    *zip(*smooth(raw, len(raw) // 40 + 1), strict=True), color=TRAIN, linewidth=1.8, label="training"
                )
            else:
                axes.plot(*zip(*raw, strict=True), color=TRAIN, linewidth=1.6, label="training")
        if validation:
            steps, losses = zip(*validation, strict=True)
            axes.plot(
                steps, losses, color=VALIDATION, linewidth=1.2, marker="o", markersize=4.5, label="validation", zorder=3
            )
        if _spread([*train, *validation]) >= LOG_FROM:
            axes.set_yscale("log")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")

    return _svg(draw, name, inches)


def _spread(curve: Points) -> float:
    """Largest value / smallest; 1 where a value is not above zero."""
    values = [value for _, value in curve]
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def small_curve(curve: Points, *, label: str, name: str, inches: tuple[float, float] = (4.0, 1.9)) -> str:
    """One figure over the steps, from zero, as SVG text."""

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*thin(curve), strict=True), color=TRAIN, linewidth=1.3)
        axes.set_title(label, color=INK, fontsize=9, loc="left")

    return _svg(draw, name, inches)


def _svg(draw: Callable[[Axes], None], name: str, inches: tuple[float, float]) -> str:
    """What `draw` draws over the steps."""

    def over_steps(axes: Axes) -> None:
        draw(axes)
        axes.set_xlabel("step", color=INK)
        axes.yaxis.label.set_color(INK)
        axes.margins(x=0.02, y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))

    return drawing(over_steps, name, inches)
