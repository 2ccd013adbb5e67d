"""Figures of a regression: errors, the share of the variance that is explained, and two correlations.

    MSE = mean (p - y)²      MAE = mean |p - y|      R² = 1 - sum (p - y)² / sum (y - mean y)²
    Pearson r = cov(p, y) / (sd p sd y)      Spearman ρ = Pearson r of the ranks, equal values sharing their mean rank

Where nothing varies, R² and the correlations are no numbers (null in JSON).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
VARIES = 1e-12
"""A column whose spread is below this share of its size is constant, whatever rounding says."""


def number_figures(expected: Column, found: Column, names: Sequence[str]) -> dict[str, Any]:
    """Of the numbers `expected` (N, K) of some rows and those `found` (N, K); the means over K, and those of each."""
    each = {name: _of_one(expected[:, at], found[:, at]) for at, name in enumerate(names)}
    means = {key: _mean([figures[key] for figures in each.values()]) for key in ("mse", "mae", "r2", *CORRELATIONS)}
    return {"rows": len(expected), **means} | ({"numbers": each} if len(names) > 1 else {})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _of_one(expected: Column, found: Column) -> dict[str, float | None]:
    error = found - expected
    spread = float(np.square(expected - expected.mean()).sum())
    return {
        "mse": float(np.square(error).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": 1 - float(np.square(error).sum()) / spread if _varies(expected) else None,
    } | {name: of(expected, found) for name, of in CORRELATIONS.items()}


def pearson(a: Column, b: Column) -> float | None:
    """r of two columns (N,); None where one of them does not vary."""
    if not (_varies(a) and _varies(b)):
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(a: Column, b: Column) -> float | None:
    """ρ of two columns (N,); None where one of them does not vary."""
    return pearson(ranks(a), ranks(b)) if _varies(a) and _varies(b) else None


def ranks(values: Column) -> Column:
    """Ranks (N,) from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Column = (ends - (counts - 1) / 2)[inverse]
    return shared


def _varies(values: Column) -> bool:
    return float(values.std()) > VARIES * max(1e-300, float(np.abs(values).max()))


CORRELATIONS = {"pearson": pearson, "spearman": spearman}
