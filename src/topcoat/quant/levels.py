"""Formats of 16, 8 or 4 levels: one scale for each block of weights in row-major order.

absmax = max|w| over the block and code = nearest(levels, w / absmax), so a weight reads back as levels[code] * absmax.
A block may cross rows and the last may be short. With 16 levels the bytes are those of bitsandbytes 0.50's CPU code,
with and without double quantization of the scales (double.py); tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from topcoat.kernels.centre_search import SMALLEST
from topcoat.kernels.nf4_dequant import dequantize_nf4
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.double import dynamic_map, quantize_scales
from topcoat.quant.pack import pack
from topcoat.quant.settings import LevelsConfig
from topcoat.quant.sizes import weight_bytes

PIECE = 1 << 20  # weights coded at a time: bounds the float32 temporaries at about 12 MiB


@dataclass(frozen=True)
class Levels:
    """What the codes stand for, and which code a value between -1 and 1 takes."""

    values: tuple[float, ...]
    """By code."""
    borders: tuple[float, ...]
    """One less, rising: a value strictly above one takes the code behind it."""
    order: tuple[int, ...] | None = None
    """The code of each interval between the borders; None where codes rise with their values."""

    @property
    def zero(self) -> int:
        """The code of zero, or of a level next to it where there is none."""
        return min(range(len(self.values)), key=lambda code: abs(self.values[code]))


@cache
def _borders(levels: Levels, device: torch.device) -> Tensor:
    """(15,), (7,) or (3,) float32."""
    return torch.tensor(levels.borders, device=device)


@cache
def _order(levels: Levels, device: torch.device) -> Tensor | None:
    """(16,) uint8."""
    return None if levels.order is None else torch.tensor(levels.order, dtype=torch.uint8, device=device)


class LevelFormat(QuantFormat):
    """Tensors `codes` (ceil(O I / 2),) uint8, of fewer bits fewer, and `absmax` (ceil(O I / S),) float32.

    With double quantization `absmax` is uint8, beside `nested_absmax` float32 and `offset` () float32.
    """

    can_wait = True
    config: LevelsConfig
    tables: ClassVar[Mapping[int, Levels]]
    """By the bits of a code."""

    @property
    def levels(self) -> Levels:
        """Those of this format's codes."""
        return self.tables[self.config.bits]

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> packed codes and scales."""
        flat = check_weight(weight).reshape(-1)  # (N,), in its own dtype: only a piece at a time becomes float32
        size, bits = self.config.block_size, self.config.bits
        whole = flat.numel() // size * size
        absmax = torch.empty(whole // size, dtype=torch.float32, device=flat.device)
        codes = torch.empty(whole * bits // 8, dtype=torch.uint8, device=flat.device)
        for start in range(0, whole, PIECE):  # PIECE is a multiple of every block size
            end = min(start + PIECE, whole)
            blocks = flat[start:end].float().view(-1, size)  # (n, S)
            scales = absmax[start // size : end // size] = blocks.abs().amax(-1)
            # times the reciprocal, not divided by the scale: the last bit of the quotient decides ties
            unit = (blocks * (1.0 / scales.clamp(min=SMALLEST))[:, None]).clamp_(-1, 1)
            codes[start * bits // 8 : end * bits // 8] = pack(self._nearest(unit.view(-1)), bits=bits)
        if whole < flat.numel():  # the short block is divided, and its floored scale is what is stored
            short = flat[whole:].float()
            last = short.abs().max().clamp(min=SMALLEST)
            unit = (short / last).clamp_(-1, 1)
            codes = torch.cat((codes, pack(self._nearest(unit), self.levels.zero, bits)))
            absmax = torch.cat((absmax, last[None]))
        require_finite(absmax, weight)
        scales_state = quantize_scales(absmax) if self.config.double_quant else {"absmax": absmax}
        shape = (weight.shape[0], weight.shape[1])
        return QuantizedWeight(self.config.format, shape, {"codes": codes, **scales_state}, {"block_size": size})

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """levels[code] * absmax in float32, rounded once to `dtype`."""
        codes, absmax, nested = q.tensors["codes"], q.tensors["absmax"], None
        if "offset" in q.tensors:
            nested = q.tensors["nested_absmax"], q.tensors["offset"], dynamic_map(absmax.device)
        size = int(q.scalars["block_size"])
        return dequantize_nf4(codes, absmax, size, target(q, dtype, out), nested, self.levels.values)

    def nbytes(self, out_features: int, in_features: int) -> int:
        """The codes and the scales: of 4 bits 4.127 a weight at block 64 with double quantization."""
        return sum(weight_bytes(self.config, out_features, in_features))

    def _nearest(self, unit: Tensor) -> Tensor:
        """unit (N,) float32 in [-1, 1] -> codes (N,)."""
        found = torch.bucketize(unit, _borders(self.levels, unit.device), out_int32=True)
        order = _order(self.levels, unit.device)
        return found if order is None else order[found]
