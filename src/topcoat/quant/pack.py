"""4-bit codes, two to a byte: codes 2i and 2i + 1 share byte i, and the first is the HIGH nibble (bitsandbytes)."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, fill: int = 0) -> Tensor:
    """codes (N,) in 0..15 -> (ceil(N / 2),) uint8; an odd last code shares its byte with `fill`."""
    codes = codes.to(torch.uint8)
    if codes.numel() % 2:
        codes = torch.cat((codes, codes.new_full((1,), fill)))
    return (codes[::2] << 4) | codes[1::2]


def unpack(packed: Tensor, count: int) -> Tensor:
    """(ceil(N / 2),) uint8 of any shape -> the first `count` codes (N,) uint8."""
    packed = packed.reshape(-1)
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[:count]
