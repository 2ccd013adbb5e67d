"""The page of a search: the rate's range test, each trial's loss from rung to rung, each setting against the loss.

It stands alone: no script, no font, no image from elsewhere, and a content policy that forbids them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from topcoat.report.drawing import INK, TRAIN, VALIDATION, drawing
from topcoat.units import show_seconds

TEMPLATE = Path(__file__).parent / "tuning.html.jinja"
BEST_SHOWN = 12
"""Trials in the table."""
HIGHEST = 1.25
"""Losses above this many times the median of the last rung are drawn at the edge: one that diverged hides the rest."""

Json = dict[str, Any]


def tuning_page(facts: Mapping[str, Any]) -> str:
    """The page as HTML text. `facts` are those of tune.json, with the winner and where it was written."""
    trials: list[Json] = list(facts["trials"])
    best: Json = facts["best"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    test, sliced = facts["range_test"], facts["slice"]
    ranked = sorted(trials, key=lambda trial: (-_reached(trial), _loss(trial)))[:BEST_SHOWN]
    return template.render(
        name=facts["name"],
        winner=facts["winner"],
        values=[(name, _show(value)) for name, value in best["values"].items()],
        loss=f"{_loss(best):.4f}",
        facts=[
            ("trials", f"{len(trials)}"),
            ("came to their end", f"{sum(trial['finished'] for trial in trials)}"),
            ("time", show_seconds(facts["seconds"])),
            ("rows of a trial", f"{sliced['rows']:,}" if sliced else "-"),
            ("rows it is measured on", f"{sliced['held']:,}" if sliced else "-"),
        ],
        space=list(facts["space"].items()),
        test=Markup(range_drawing(test)) if test and len(test["points"]) > 2 else None,
        tested=(f"{test['low']:g}", f"{test['high']:g}") if test else None,
        rungs=Markup(rung_drawing(trials, best["trial"])),
        edge=f"{_edge(trials):.3g}" if _highest(trials) > _edge(trials) else None,
        settings=[
            (name, Markup(setting_drawing(name, span, trials, best, name in facts["log"])))
            for name, span in facts["space"].items()
        ],
        names=list(facts["space"]),
        ranked=[_row(trial, list(facts["space"]), trial["trial"] == best["trial"]) for trial in ranked],
    )


def range_drawing(test: Mapping[str, Any]) -> str:
    """Smoothed loss over the rate, with the span that is searched; SVG text."""

    def draw(axes: Axes) -> None:
        rates, losses = zip(*test["points"], strict=True)
        axes.axvspan(test["low"], test["high"], color=TRAIN, alpha=0.12, linewidth=0)
        axes.plot(rates, losses, color=TRAIN, linewidth=1.8, marker="o", markersize=3)
        axes.set_xscale("log")
        _log_ticks(axes)
        axes.set_xlabel("learning rate", color=INK)
        axes.set_ylabel("loss, smoothed", color=INK)

    return drawing(draw, "learning-rate range test", (8, 2.8))


def rung_drawing(trials: Sequence[Json], best: int) -> str:
    """Loss of each trial at its rungs; those that went on are longer; SVG text."""
    top = _edge(trials)

    def draw(axes: Axes) -> None:
        for trial in sorted(trials, key=lambda trial: trial["trial"] == best):
            rungs = sorted((int(rung), min(loss, top)) for rung, loss in trial["losses"].items())
            mine = trial["trial"] == best
            axes.plot(
                *zip(*rungs, strict=True),
                color=VALIDATION if mine else TRAIN,
                alpha=1.0 if mine else 0.45,
                linewidth=2.2 if mine else 1.1,
                marker="o",
                markersize=5 if mine else 3.5,
                label="the best" if mine else None,
                zorder=3 if mine else 2,
            )
        axes.set_xscale("log")
        axes.set_xticks([1, 3, 9], ["1/9", "1/3", "all"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("of the trial's steps", color=INK)
        axes.set_ylabel("loss", color=INK)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")

    return drawing(draw, "trials by rung", (8, 3.2))


def setting_drawing(name: str, span: str, trials: Sequence[Json], best: Json, log: bool) -> str:
    """Each trial's value of one setting, searched over `span`, against its loss; SVG text."""
    top = _edge(trials)
    values = [trial["values"][name] for trial in trials]
    words = any(isinstance(value, str | bool) for value in values)
    few = sorted({float(value) for value in values}) if not words and ".." not in span else []
    order = sorted({_show(value) for value in values}) if words else []

    def place(value: Any) -> float:
        return float(order.index(_show(value))) if words else float(value)

    def draw(axes: Axes) -> None:
        for trial in trials:
            mine = trial["trial"] == best["trial"]
            colour = VALIDATION if mine else TRAIN
            size = {1: 14, 3: 26}.get(_reached(trial), 40)
            face = colour if _reached(trial) == 9 else "none"
            x = place(trial["values"][name])
            axes.scatter(
                [x],
                [min(_loss(trial), top)],
                s=size,
                facecolors=face,
                edgecolors=colour,
                marker="^" if _loss(trial) > top else "o",
                zorder=3 if mine else 2,
            )
        if few:
            if few[0] > 0 and few[-1] / few[0] >= 4:
                axes.set_xscale("log")
            axes.set_xticks(few, [f"{value:g}" for value in few])
            axes.xaxis.set_minor_locator(NullLocator())
        elif log:
            axes.set_xscale("log")
            _log_ticks(axes)
        elif words:
            axes.set_xticks(range(len(order)), order, parse_math=False)
            axes.margins(x=0.2)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(name, color=INK)
        axes.set_ylabel("loss", color=INK)

    return drawing(draw, f"loss by {name}", (8, 2.6))


def _edge(trials: Sequence[Json]) -> float:
    """The highest loss that is drawn where it is."""
    losses = sorted(_loss(trial) for trial in trials)
    return min(_highest(trials), HIGHEST * losses[len(losses) // 2]) if losses else 0.0


def _highest(trials: Sequence[Json]) -> float:
    return max((float(loss) for trial in trials for loss in trial["losses"].values()), default=0.0)


def _reached(trial: Json) -> int:
    return max(int(rung) for rung in trial["losses"])


def _loss(trial: Json) -> float:
    return float(trial["losses"][str(_reached(trial))])


def _row(trial: Json, names: Sequence[str], best: bool) -> Json:
    reached = {1: "1/9", 3: "1/3"}.get(_reached(trial), "all")
    cells = [_show(trial["values"].get(name, "-")) for name in names]
    return {"trial": trial["trial"], "cells": cells, "reached": reached, "loss": f"{_loss(trial):.4f}", "best": best}


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _log_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
