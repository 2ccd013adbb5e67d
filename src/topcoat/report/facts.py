"""Any nested dict as lines a person can read: ("tokens per s", "1,204"), sizes and durations with their units.

The unit is read from the key (`peak_bytes`, `train_seconds`, `elapsed_s`, `share_trained`), as the project's names
carry it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from topcoat.units import show_bytes, show_percent, show_seconds

UNITS = {"bytes": show_bytes, "seconds": show_seconds, "s": show_seconds}
MOST_ITEMS = 10
"""Items of a list that are shown."""


def facts(values: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every leaf of `values`, nested names joined by " · ". None and empty dicts are left out."""
    for key, value in values.items():
        name = f"{inside} · {label(key)}" if inside else label(key)
        if isinstance(value, Mapping):
            yield from facts(value, name)
        elif value is not None:
            yield name, show(key, value)


def label(key: str) -> str:
    """A key as words: "max_length" -> "max length"; a unit that the value shows is left out."""
    words = str(key).split("_")
    if len(words) > 1 and words[-1] in ("bytes", "seconds", "s") and words[-2] != "per":
        words = words[:-1]
    return " ".join(words)


def show(key: str, value: Any) -> str:
    """One value; numbers by the unit its key names, or with thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        words = str(key).split("_")
        if words[-1] in UNITS and words[-2:-1] != ["per"]:
            return UNITS[words[-1]](value)
        if "share" in words:
            return show_percent(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, list | tuple):
        more = [f"and {len(value) - MOST_ITEMS:,} more"] if len(value) > MOST_ITEMS else []
        return ", ".join([show("", item) for item in value[:MOST_ITEMS]] + more) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in facts(value))
    return str(value)
