"""How often a lent buffer has changed its address: what was captured in a graph reads and writes the old one.

Arenas and scratch buffers grow when a larger tensor is asked of them. `replay` (training/replay.py) compares the count
with that of its capture before it lets a graph run again.
"""

from __future__ import annotations

_count = 0


def moves() -> int:
    """Buffers that were replaced or given back since the process began."""
    return _count


def note_move() -> None:
    """A buffer that somebody may have captured is about to go."""
    global _count
    _count += 1
