"""What a run that learns labels or numbers shows in place of answers: its figures, each label, what was mixed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topcoat.report.facts import show
from topcoat.report.scores import show_interval, show_share, wilson

Json = dict[str, Any]

FIGURES = {
    "accuracy": ("Accuracy", "higher is better"),
    "macro_f1": ("Macro-F1", "higher is better"),
    "mse": ("Mean squared error", "lower is better"),
    "mae": ("Mean absolute error", "lower is better"),
    "r2": ("R²", "higher is better"),
    "pearson": ("Pearson correlation", "higher is better"),
    "spearman": ("Spearman correlation", "higher is better"),
}
"""Figure of results.json -> its title, and which way is better."""
CONSTANT = "constant answer"
"""What stands in place of the base, which has no head: the most frequent label, or the mean of the numbers."""
MOST_LINES = 40


def has_labels(results: Mapping[str, Any]) -> bool:
    """Whether these are the results of labels or numbers."""
    return any(name in (results.get("adapter") or {}) for name in FIGURES)


def label_verdict(results: Mapping[str, Any]) -> str:
    """One sentence that says what was measured against what; empty for other results."""
    adapter, base = results.get("adapter") or {}, results.get("base") or {}
    rows = adapter.get("rows")
    if "accuracy" in adapter and isinstance(rows, int):
        right, usual = (round(side.get("accuracy", 0) * rows) for side in (adapter, base))
        said = f"The adapter labels {right} of {rows} held-out rows rightly"
        return f"{said}; always saying the most frequent label is right for {usual}."
    if "mse" in adapter and isinstance(rows, int):
        return f"Measured on {rows} held-out rows, beside always saying the mean of the training rows."
    return ""


def label_scores(results: Mapping[str, Any]) -> list[Json]:
    """One entry for each figure, with a line for the constant answer and one for the adapter."""
    scores = []
    for name, (title, better) in FIGURES.items():
        sides = (("base", CONSTANT), ("adapter", "adapter"))
        found = [(label, (results.get(side) or {}).get(name), results.get(side) or {}) for side, label in sides]
        if found[1][1] is None:
            continue
        lines = [_line(name, who, value, side) for who, value, side in found if value is not None]
        scores.append({"title": title, "better": better, "lines": lines})
    return scores


def _line(name: str, who: str, value: float, side: Mapping[str, Any]) -> Json:
    rows = side.get("rows")
    line: Json = {"who": who, "value": shown(name, value), "detail": "", "low": None}
    if name == "accuracy" and isinstance(rows, int) and rows:
        right = round(value * rows)
        low, high = wilson(right, rows)
        line |= {
            "value": show_share(right, rows),
            "detail": f"{right} of {rows} rows; 95 % interval {show_interval(right, rows)}",
            "low": round(100 * low, 2),
            "width": round(100 * (high - low), 2),
            "at": round(100 * right / rows, 2),
        }
    return line


def shown(name: str, value: float) -> str:
    """A figure in words: shares in per cent, others with four digits."""
    return f"{100 * value:.1f} %" if name in ("accuracy", "macro_f1") else show("", float(value))


def label_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each label (or number) with its own figures, then the pairs taken for one another, the most frequent first."""
    adapter = results.get("adapter") or {}
    lines = [
        (name, f"{of['rows']} rows: precision {100 * of['precision']:.1f} %, recall {100 * of['recall']:.1f} %")
        for name, of in (adapter.get("labels") or {}).items()
    ]
    for name, of in (adapter.get("numbers") or {}).items():
        known = ", ".join(f"{FIGURES[key][0]} {shown(key, value)}" for key, value in of.items() if value is not None)
        lines.append((name, known))
    lines = lines[:MOST_LINES] + ([("…", f"and {len(lines) - MOST_LINES} more")] if len(lines) > MOST_LINES else [])
    mixed = [
        (f"{pair['label']} taken for {pair['predicted']}", f"{pair['rows']} rows")
        for pair in (adapter.get("confusion") or [])[:MOST_LINES]
    ]
    return lines + mixed
