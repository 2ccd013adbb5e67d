"""Codes of 2, 3, 4 or 8 bits side by side: the first code lies in the lowest bits.

4 bits: two codes to a byte; 2 bits: four; 3 bits: eight codes to three bytes, a little-endian number of 24 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.code_sizes import CODES


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """codes (..., N) in 0 .. 2**bits - 1 -> (..., N * bits / 8) uint8; N is a multiple of CODES[bits]."""
    parts = codes.unflatten(-1, (-1, CODES[bits])).to(torch.int32)  # (..., n, CODES)
    word = torch.zeros_like(parts[..., 0])
    for place in range(CODES[bits]):
        word |= parts[..., place] << bits * place
    count = CODES[bits] * bits // 8
    return torch.stack([(word >> 8 * byte & 255).to(torch.uint8) for byte in range(count)], dim=-1).flatten(-2)
