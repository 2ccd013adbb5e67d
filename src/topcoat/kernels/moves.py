"""How often a lent buffer has changed its address, which ends whatever still reads or writes the old one.

Arenas and scratch buffers grow when a larger tensor is asked of them, and an arena whose forward failed is replaced. A
captured graph holds addresses: whoever replays one compares this count with that of its capture.
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
