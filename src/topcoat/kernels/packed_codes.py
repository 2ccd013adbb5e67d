"""Codes of few bits side by side in bytes, and the codes again.

Of 2 and 3 bits, and in rows also of 4, the first code lies in the lowest bits: four codes to a byte, eight to three
bytes, two to a byte. The 4-bit codes of nf4 and fp4 are bitsandbytes': two to a byte, the first in the HIGH nibble.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """(..., N * bits / 8) uint8 -> codes (..., N) uint8."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    if bits == 2:
        return torch.stack([packed >> 2 * place & 3 for place in range(4)], dim=-1).flatten(-2)
    low, middle, high = packed.unflatten(-1, (-1, 3)).unbind(-1)  # each (..., n)
    parts = [low, low >> 3, (low >> 6) | (middle << 2), middle >> 1, middle >> 4, (middle >> 7) | (high << 1)]
    return torch.stack([part & 7 for part in [*parts, high >> 2, high >> 5]], dim=-1).flatten(-2)


def unpack_flat(packed: Tensor, count: int, bits: int = 4) -> Tensor:
    """Bytes of any shape -> the first `count` codes (N,) uint8; those of 4 bits are bitsandbytes'."""
    packed = packed.reshape(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten() if bits == 4 else unpack_bits(packed, bits)
    return codes[:count]
