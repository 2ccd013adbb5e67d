"""Quantities for people: bytes as "5.2 GiB", counts as "1.3B", seconds as "4m 10s". For printing only."""

from __future__ import annotations


def show_bytes(n: float) -> str:
    """`n` bytes with a binary unit: 512 -> "512 B", 5.2 * 2**30 -> "5.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def show_count(n: float) -> str:
    """`n` with a decimal letter: 950 -> "950", 4_884_480 -> "4.88M", 8.03e9 -> "8.03B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.2f}".rstrip("0").rstrip(".") + letter
    return f"{n:g}"


def show_seconds(seconds: float) -> str:
    """A duration: 0.25 -> "0.2s", 42 -> "42s", 250 -> "4m 10s", 7260 -> "2h 01m"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def show_percent(share: float) -> str:
    """A share of one: 0.054 -> "5.4 %", 0.963 -> "96 %"."""
    percent = 100 * share
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
