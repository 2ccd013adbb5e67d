"""Codes one after the other, rows or not: kernels/packed_codes.py says how they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.code_sizes import CODES
from topcoat.quant.bits import pack_bits


def pack(codes: Tensor, fill: int = 0, bits: int = 4) -> Tensor:
    """codes (N,) in 0 .. 2**bits - 1 -> bytes, uint8; those left of the last ones are filled up with `fill`."""
    codes = codes.to(torch.uint8)
    short = -codes.numel() % CODES[bits]
    if short:
        codes = torch.cat((codes, codes.new_full((short,), fill)))
    return (codes[::2] << 4) | codes[1::2] if bits == 4 else pack_bits(codes, bits)
