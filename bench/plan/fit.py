"""Fit the factors of `planning/cpu_speed.py` to the measured grid, and say how well they foretell points left out.

    python -m bench.plan.fit

Of every undisturbed row the recipe is planned again for the floors of its parts, and the factors of each path are found
by least squares of relative errors, none below zero. Linears are held at `--linears` of their floor: in the grid
they rise with everything else, and what they cost alone is known from one large product after another. What is printed
is for a person who then writes PATHS; the last column is the error of each point by the factors of all the others.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.machine import QUIET
from bench.plan.points import GRID
from bench.plan.run import CACHE, prepared, read, results_here
from topcoat.planning.cpu_speed import Parts
from topcoat.planning.speed import parts_of
from topcoat.runs.planning import plan

LINEARS = 1.2
"""On a processor with AMX. Without it 1.0 fits as well as any between 0.9 and 1.05."""
ENOUGH = 10
"""Points of a path, below which its factors are left to judgement."""
Way = tuple[bool, bool]
"""(hand-written blocks, 16 bits)."""


def floors_of(recipe: Path) -> tuple[Way, Parts]:
    """The path that a recipe takes on this CPU, and the floors of a step."""
    made = plan(recipe, device="cpu").estimate
    parts = parts_of(made.request, made.counts, made.policies, made.recomputed)
    return (made.counts.blocks is not None, made.request.element_bytes == 2), parts


def fitted(A: NDArray[np.float64], b: NDArray[np.float64], rounds: int = 500) -> NDArray[np.float64]:
    """x (K,), none negative, for the least |A x - b|; A is (N, K). By coordinate descent."""
    squares, x, rest = (A * A).sum(0), np.zeros(A.shape[1]), b.copy()
    for _ in range(rounds):
        for k in np.flatnonzero(squares):
            moved = max(0.0, x[k] + A[:, k] @ rest / squares[k])
            rest -= A[:, k] * (moved - x[k])
            x[k] = moved
    return x


def report(
    path: Way, names: Sequence[str], floors: NDArray[np.float64], seconds: NDArray[np.float64], linears: float
) -> None:
    """Print the factors of one path, by floors (N, K) and measured seconds (N,), and how well they do."""
    parts = list(Parts.__dataclass_fields__)
    print(f"hand-written blocks {path[0]}, 16 bits {path[1]}: {len(seconds)} points")
    if len(seconds) < ENOUGH:
        print("  too few for a fit")
        return
    held = parts.index("linears")
    A = np.delete(floors, held, 1) / seconds[:, None]
    b = 1 - linears * floors[:, held] / seconds
    x = fitted(A, b)
    for name, factor in zip((part for part in parts if part != "linears"), x, strict=True):
        print(f"  {name:12} {factor:.2f}")
    own = A @ x - b
    apart = np.array([A[at] @ fitted(np.delete(A, at, 0), np.delete(b, at)) - b[at] for at in range(len(b))])
    for title, errors in (("by its own factors", own), ("by those of all others", apart)):
        print(f"  error {title}: median {np.median(abs(errors)):.1%}, worst {abs(errors).max():.1%}")
    for name, measured, one, other in zip(names, seconds, own, apart, strict=True):
        print(f"    {name:40} {measured:8.3f} s {one:+7.1%} {other:+7.1%}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--results", type=Path, default=None, help="file of rows that this machine measured")
    parser.add_argument("--linears", type=float, default=LINEARS, help="of their floor, held")
    options = parser.parse_args(argv)
    rows = read(options.results or results_here())
    names, floors, seconds = defaultdict(list), defaultdict(list), defaultdict(list)
    for point in GRID:
        row = rows.get(point.name)
        if row is None or row.get("others_cores", QUIET) >= QUIET:
            continue
        path, parts = floors_of(prepared(point, options.cache)[0])
        names[path].append(point.name)
        floors[path].append(list(asdict(parts).values()))
        seconds[path].append(row["step_s"])
    for path in floors:
        report(path, names[path], np.array(floors[path]), np.array(seconds[path]), options.linears)


if __name__ == "__main__":
    main()
