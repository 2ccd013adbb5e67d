"""Figures of a classification: accuracy, F1 of each label and their mean, and what was taken for what.

    precision = tp / (tp + fp)      recall = tp / (tp + fn)      F1 = 2 tp / (2 tp + fp + fn)
    macro-F1 = mean of F1 over the labels that a row has or was given

A quotient of nothing by nothing is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(expected: NDArray[np.int64], found: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """counts (K, K): how many rows of label i were given label j."""
    counts = np.bincount(expected * labels + found, minlength=labels * labels)
    return counts.reshape(labels, labels)


def class_figures(expected: NDArray[np.int64], found: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Of the labels `expected` (N,) of some rows and those `found` (N,), numbers of `names`; N is at least 1.

    `confusion` lists the pairs that were taken for one another, the most frequent first.
    """
    counts = confusion(expected, found, len(names))  # (K, K)
    hits, has, given = np.diag(counts), counts.sum(1), counts.sum(0)
    f1 = _quotients(2 * hits, has + given)
    present = (has + given) > 0
    wrong = counts - np.diag(hits)
    pairs = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda pair: (-wrong[pair], pair))
    precision, recall = _quotients(hits, given), _quotients(hits, has)
    return {
        "rows": len(expected),
        "accuracy": float(hits.sum() / len(expected)),
        "macro_f1": float(f1[present].mean()),
        "labels": {
            name: {
                "rows": int(has[at]),
                "precision": float(precision[at]),
                "recall": float(recall[at]),
                "f1": float(f1[at]),
            }
            for at, name in enumerate(names)
        },
        "confusion": [{"label": names[i], "predicted": names[j], "rows": int(wrong[i, j])} for i, j in pairs],
    }


def _quotients(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(below > 0, above / np.maximum(below, 1), 0.0)
