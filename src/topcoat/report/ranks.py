"""Where a run's ranks went: a picture of every linear's final rank, by layer and module, and the budget over the steps.

Drawn from the rows of metrics.jsonl that tell `ranks` (AdaLoRA's do), in the way of `curves.py`. A run without such
rows has no such part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from topcoat.adapters.patterns import layer_number
from topcoat.report.bars import shortened
from topcoat.report.curves import points, small_curve
from topcoat.report.drawing import INK, TRAIN, drawing
from topcoat.units import show_count

Grid = list[list[float | None]]
"""Rows of figures; None where there is no linear."""

MOST_NUMBERS = 4.5
"""Columns an inch up to which each cell says its figure."""
STRONGEST = 0.65
"""Opacity of the largest rank: text on it stays readable."""


def rank_pictures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the page shows of the ranks, or None where a run tells none."""
    told = {row["step"]: row["ranks"] for row in metrics if isinstance(row.get("step"), int) and _ranks(row)}
    if not told:
        return None
    first, last = told[min(told)], told[max(told)]
    most = max(1, *(rank for ranks in told.values() for rank in ranks.values()))
    modules, layers = _modules(last), sorted({layer_number(path) or 0 for path in last})
    final = _by_layer(last, modules, layers)
    steps = sorted(told)
    moves: Grid = [[_mean(told[step], module) for step in steps] for module in modules]
    names, columns = [shortened(module) for module in modules], [str(layer) for layer in layers]
    title = "rank of each linear at the end, by layer and module"
    drawn = rank_grid(final, names, columns, most, name=title, below="layer")
    moved = rank_grid(
        moves, names, [str(step) for step in steps], most, name="mean rank over the steps", below="step", wide=4
    )
    budget = points(metrics, "budget")
    curve = small_curve(budget, label="ranks of all linears together: the budget", name="rank budget")
    return {
        "said": f"{len(last):,} linears had {show_count(sum(first.values()))} ranks together at step {min(told)} and "
        f"have {show_count(sum(last.values()))} at step {max(told)}: from {min(last.values())} to "
        f"{max(last.values())} in one.",
        "final": Markup(drawn),
        "moves": Markup(moved) if len(steps) > 1 else None,
        "budget": Markup(curve) if budget else None,
        "layers": layers,
        "table": [
            (module, ["" if rank is None else f"{rank:.3g}" for rank in row])
            for module, row in zip(modules, final, strict=True)
        ],
    }


def _ranks(row: Mapping[str, Any]) -> bool:
    """Whether the row tells ranks that are ranks; a file may hold anything."""
    ranks = row.get("ranks")
    return isinstance(ranks, dict) and bool(ranks) and all(isinstance(r, int) and r >= 0 for r in ranks.values())


def _module(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _modules(ranks: Mapping[str, int]) -> list[str]:
    """Names of the modules, in the order of the model."""
    return list(dict.fromkeys(map(_module, ranks)))


def _by_layer(ranks: Mapping[str, int], modules: list[str], layers: list[int]) -> Grid:
    """Ranks (module, layer); the sum where one layer has several linears of a name."""
    found: dict[tuple[str, int], float] = {}
    for path, rank in ranks.items():
        place = _module(path), layer_number(path) or 0
        found[place] = found.get(place, 0) + rank
    return [[found.get((module, layer)) for layer in layers] for module in modules]


def _mean(ranks: Mapping[str, int], module: str) -> float | None:
    own = [rank for path, rank in ranks.items() if _module(path) == module]
    return sum(own) / len(own) if own else None


def rank_grid(
    values: Grid, rows: list[str], columns: list[str], most: int, *, name: str, below: str, wide: float = 8
) -> str:
    """`values` (row, column) as cells that are the stronger the nearer to `most`; SVG text."""

    def draw(axes: Axes) -> None:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is None:
                    continue
                strength = 0.04 + (STRONGEST - 0.04) * min(1.0, value / most)
                cell = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=TRAIN, alpha=strength, linewidth=0)
                axes.add_patch(cell)
                if len(columns) <= MOST_NUMBERS * wide:
                    axes.text(x, y, f"{value:.3g}", color=INK, ha="center", va="center", fontsize=7.5)
        every = -(-len(columns) // round(2.25 * wide))
        axes.set_xticks(range(0, len(columns), every), columns[::every])
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(below, color=INK)
        axes.spines["bottom"].set_visible(False)

    return drawing(draw, name, (wide, 0.7 + (0.3 if wide > 4 else 0.18) * len(rows)), grid=False)
