"""The page of `topcoat quantize --report`: what each format takes, what it gets wrong, and where, as one HTML file.

It stands alone: no script, no font, no image from elsewhere, and a content policy that forbids them.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from topcoat.report.drawing import INK, TRAIN, VALIDATION, drawing
from topcoat.units import show_bytes, show_percent, show_seconds

TEMPLATE = Path(__file__).parent / "quantize.html.jinja"
LINES = ("-", "--", ":", "-.")
"""Of the formats, in their order, in two colours: eight can be told apart."""

Json = Mapping[str, Any]


def render(report: Json) -> str:
    """The page as HTML text, from what report.json holds."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    formats = list(report["formats"])
    by_kind = error_table(formats)
    return template.render(
        name=Path(report["model"]).name or report["model"],
        text=Path(report["text"]).name,
        tokens=f"{formats[0]['tokens']:,}" if formats else "0",
        rows=[row(one, formats[0]) for one in formats],
        trade=Markup(drawing(lambda axes: _trade(axes, formats), "perplexity over bits", (8, 3.4))),
        blocks=Markup(drawing(lambda axes: _blocks(axes, formats), "error by block", (8, 3.8))),
        kinds=[one["name"] for one in _quantized(formats)],
        by_kind=by_kind,
    )


def row(one: Json, stored: Json) -> list[str]:
    """A line of the table: format, bits, size, error, perplexity, its change, times."""
    changed = one["perplexity"] / stored["perplexity"] - 1 if _is_finite(one) and _is_finite(stored) else math.nan
    return [
        str(one["name"]),
        f"{one['bits_per_weight']:.2f}",
        show_bytes(one["weight_bytes"]),
        show_percent(one["mean_error"]) if one["mean_error"] else "0",
        f"{one['perplexity']:.3f}" if _is_finite(one) else "not finite",
        "" if one is stored else f"{100 * changed:+.2f} %",
        show_seconds(one["load_s"]),
        show_seconds(one["score_s"]),
    ]


COLUMNS = ("format", "bits", "weights", "error", "perplexity", "change", "load", "score")
"""What the parts of `row` are."""


def error_table(formats: Sequence[Json]) -> list[tuple[str, list[str]]]:
    """(kind of linear, its mean error in each quantized format), such as q_proj over all blocks."""
    kinds: dict[str, list[list[float]]] = defaultdict(list)
    quantized = _quantized(formats)
    for at, one in enumerate(quantized):
        for path, error in one["errors"].items():
            columns = kinds[path.rsplit(".", 1)[-1]]
            columns.extend([] for _ in range(len(quantized) - len(columns)))
            columns[at].append(error)
    return [
        (kind, [show_percent(statistics.fmean(errors)) if errors else "" for errors in columns])
        for kind, columns in kinds.items()
    ]


def _quantized(formats: Sequence[Json]) -> list[Json]:
    """Those that get anything wrong."""
    return [one for one in formats if any(one["errors"].values())]


def _is_finite(one: Json) -> bool:
    return one["perplexity"] is not None and math.isfinite(one["perplexity"])


def _trade(axes: Axes, formats: Sequence[Json]) -> None:
    """One point a format: bits to the right, perplexity upwards."""
    shown = [one for one in formats if _is_finite(one)]
    for at, one in enumerate(shown):
        x, y = one["bits_per_weight"], one["perplexity"]
        axes.plot([x], [y], "o", color=VALIDATION if at == 0 else TRAIN, markersize=6)
    if shown:
        axes.axhline(shown[0]["perplexity"], color=VALIDATION, linewidth=0.8, linestyle=":")
        largest = max(one["perplexity"] for one in shown)
        if largest > 20 * min(one["perplexity"] for one in shown):
            axes.set_yscale("log")
    middle = sum(one["bits_per_weight"] for one in (min(shown, key=_bits), max(shown, key=_bits))) / 2 if shown else 0
    for one, place in zip(shown, _label_places(shown), strict=True):
        to_left = one["bits_per_weight"] > middle
        axes.annotate(
            str(one["name"]),
            (one["bits_per_weight"], one["perplexity"]),
            xytext=(-7 if to_left else 7, place),
            ha="right" if to_left else "left",
            textcoords="offset points",
            color=INK,
            va="center",
            parse_math=False,
        )
    axes.margins(x=0.16, y=0.18)
    axes.set_xlabel("bits a weight, scales included", color=INK)
    axes.set_ylabel("perplexity", color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _bits(one: Json) -> float:
    return float(one["bits_per_weight"])


def _label_places(shown: Sequence[Json]) -> list[float]:
    """Points up or down for each name, so that those of neighbours do not lie on each other."""
    places: list[float] = []
    span = max((o["perplexity"] for o in shown), default=1) - min((o["perplexity"] for o in shown), default=0) or 1.0
    for at, one in enumerate(shown):
        near = [
            places[other]
            for other in range(at)
            if abs(shown[other]["bits_per_weight"] - one["bits_per_weight"]) < 1.5
            and abs(shown[other]["perplexity"] - one["perplexity"]) < 0.08 * span
        ]
        choices = (9.0, 20.0, -9.0, 31.0, -20.0, 42.0, -31.0)  # beside the dotted line, not on it
        places.append(next((place for place in choices if place not in near), 9.0))
    return places


def _blocks(axes: Axes, formats: Sequence[Json]) -> None:
    """The mean error of the linears of each block, one line a format."""
    for at, one in enumerate(_quantized(formats)):
        blocks: dict[int, list[float]] = defaultdict(list)
        for path, error in one["errors"].items():
            if number := re.search(r"\.(\d+)\.", path):
                blocks[int(number[1])].append(error)
        points = [(number, 100 * statistics.fmean(errors)) for number, errors in sorted(blocks.items())]
        if points:
            colour, style = (TRAIN, VALIDATION)[at // len(LINES) % 2], LINES[at % len(LINES)]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, linewidth=1.5, label=str(one["name"]))
    if axes.lines:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=2)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block", color=INK)
    axes.set_ylabel("error of the weights, %", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
