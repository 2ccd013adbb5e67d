"""Bars of the data check as inline SVG, drawn and coloured in the way of `curves.py`."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from topcoat.data.checks.figures import Histogram
from topcoat.report.drawing import INK, RULE, TRAIN, VALIDATION, drawing
from topcoat.units import show_count

MOST_LABELS = 20
LABEL_CHARACTERS = 28


def length_bars(lengths: Histogram, limit: int | None, *, name: str, inches: tuple[float, float] = (8, 2.6)) -> str:
    """Rows by their length in tokens, on a logarithmic axis, with a line at `limit`; SVG text."""

    def draw(axes: Axes) -> None:
        widths = [high - low for low, high in zip(lengths.edges, lengths.edges[1:], strict=False)]
        axes.bar(lengths.edges[:-1], lengths.counts, widths, align="edge", color=TRAIN, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=10))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.set_xlabel("tokens of a row", color=INK)
        axes.set_ylabel("rows", color=INK)
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        if limit is not None and lengths.edges[0] <= limit <= lengths.edges[-1] * 2:
            axes.axvline(limit, color=VALIDATION, linewidth=1.4)
            place, to_left = axes.get_xaxis_transform(), limit > lengths.edges[len(lengths.edges) // 2]
            axes.text(
                limit,
                0.98,
                " max_length " if not to_left else "max_length ",
                transform=place,
                color=VALIDATION,
                ha="right" if to_left else "left",
                va="top",
            )

    return drawing(draw, name, inches, grid=False)


def label_bars(labels: Mapping[str, int], *, name: str) -> str:
    """Rows of the most frequent labels, one bar each, and one for all the others; SVG text."""
    shown = dict(list(labels.items())[:MOST_LABELS])
    rest = list(labels.values())[MOST_LABELS:]
    texts = [shortened(label) for label in shown] + ([f"{len(rest):,} others, mean"] if rest else [])
    counts = [*shown.values(), *([sum(rest) / len(rest)] if rest else [])]

    def draw(axes: Axes) -> None:
        places = range(len(counts))
        axes.barh(places, counts, color=TRAIN, height=0.7, linewidth=0)
        axes.set_yticks(places, texts, parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("rows", color=INK)
        axes.grid(axis="x", color=RULE, linewidth=0.7)

    return drawing(draw, name, (8, 0.8 + 0.24 * len(counts)), grid=False)


def stacked_bars(bars: Mapping[str, Mapping[str, int]], mark: int | None, *, name: str) -> str:
    """One bar for each of `bars`, stacked of its parts in bytes, with a line at `mark`, what was measured; SVG text."""
    unit = 2**30 if max(sum(parts.values()) for parts in bars.values()) > 2**30 else 2**20

    def draw(axes: Axes) -> None:
        for row, parts in enumerate(bars.values()):
            at = 0.0
            for number, (part, size) in enumerate(parts.items()):
                axes.barh(row, size / unit, left=at, height=0.5, color=TRAIN, alpha=1 - 0.22 * number, linewidth=0)
                if size > 0.08 * sum(parts.values()):
                    axes.text(at + size / unit / 2, row + 0.3, part, color=INK, ha="center", va="bottom")
                at += size / unit
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel("GiB" if unit == 2**30 else "MiB", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        if mark is not None:
            axes.axvline(mark / unit, color=VALIDATION, linewidth=1.6)
            axes.text(mark / unit, -0.58, "measured ", color=VALIDATION, va="bottom", ha="right")

    return drawing(draw, name, (8, 0.9 + 0.6 * len(bars)), grid=False)


def shortened(label: str) -> str:
    """One short line of what XML can hold."""
    text = "".join(c for c in " ".join(label.split()) if c.isprintable()) or "(empty)"
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"
