"""How many codes of few bits fill whole bytes. No torch: plans count with it too."""

from __future__ import annotations

CODES = {2: 4, 3: 8, 4: 2, 8: 1}
"""Bits of a code -> how many of them fill whole bytes."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes side by side, the last ones filled up."""
    return -(-count // CODES[bits]) * CODES[bits] * bits // 8
