"""nf4-icq, nf3-icq, nf2-icq: NormalFloat around a centre for each block, so chosen that its codes tell the most.

w reads back as table[code] * absmax + centre, with absmax = max|w - centre|. The centre is searched among
centre = f absmax(w - m) + m, m the block's lower median and f on 2 n + 1 points of [-0.1, 0.1] * 0.54109, and zero,
which the paper does not try and which makes every block's entropy at least that of nf4 (nf3, nf2). It is stored in 8
bits of the signed dynamic map (double.py), with one scale for 256 blocks and no mean removed, and weights are coded
around the centre as stored.

Information calibration quantization: Qin et al. 2024 (IR-QLoRA), arXiv:2402.05445, section 3.2. Its text has a range of
0.1 and its code this 0.1 * 0.54109; the code is followed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.centre_search import SMALLEST, best_centres
from topcoat.kernels.code_sizes import packed_bytes
from topcoat.kernels.nf4_dequant import dequantize_nf4
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.double import SCALE_BLOCK, dequantize_scales, dynamic_map, quantize_scales
from topcoat.quant.levels import Levels
from topcoat.quant.normal_float import NORMAL_FLOAT
from topcoat.quant.pack import pack
from topcoat.quant.settings import NormalFloatIcqConfig
from topcoat.quant.sizes import weight_bytes

REACH = 0.1 * 0.54109
"""How far the search goes on either side of the median, in parts of the block's largest distance from it."""
PIECE = 1 << 16  # weights searched or rebuilt at a time, so that temporaries stay in cache


class NormalFloatIcq(QuantFormat):
    """Tensors of nf4, nf3 or nf2, and `centre` (blocks,) uint8 with `centre_scale` (ceil(blocks / 256),) float32."""

    Config = NormalFloatIcqConfig
    config: NormalFloatIcqConfig

    @property
    def levels(self) -> Levels:
        """Those of this format's codes."""
        return NORMAL_FLOAT[self.config.bits]

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> codes, scales and centres."""
        flat, size = check_weight(weight).reshape(-1), self.config.block_size
        blocks, step = -(-flat.numel() // size), max(1, PIECE // size)
        pieces = range(0, blocks, step)
        centres = torch.empty(blocks, device=flat.device)
        for first in pieces:
            values, real = _blocks(flat, first, first + step, size)
            require_finite(values.abs().amax(-1), weight)
            count = int(real[-1].sum())
            centres[first : first + step] = centres_of(values, count, self.config.search_points, self.levels)
        centre, centre_scale = _store(centres)
        centres = _load(centre, centre_scale)
        codes = torch.empty(blocks, size, dtype=torch.uint8, device=flat.device)
        absmax = torch.empty(blocks, device=flat.device)
        for first in pieces:
            values, real = _blocks(flat, first, first + step, size)
            left = (values - centres[first : first + step, None]).where(real, torch.zeros(()))
            absmax[first : first + step] = left.abs().amax(-1)
            codes[first : first + step] = _code(left, absmax[first : first + step], self.levels)
        tensors = {"codes": pack(codes.view(-1)[: flat.numel()], self.levels.zero, self.config.bits)}
        tensors |= quantize_scales(absmax) if self.config.double_quant else {"absmax": absmax}
        tensors |= {"centre": centre, "centre_scale": centre_scale}
        return QuantizedWeight(self.config.format, (weight.shape[0], weight.shape[1]), tensors, {"block_size": size})

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """table[code] * absmax + centre in float32, rounded once to `dtype`."""
        out = target(q, dtype, out)
        absmax, size, bits = q.tensors["absmax"], int(q.scalars["block_size"]), self.config.bits
        if "offset" in q.tensors:
            absmax = dequantize_scales(absmax, q.tensors["nested_absmax"], q.tensors["offset"])
        centres = _load(q.tensors["centre"], q.tensors["centre_scale"])
        whole = out if out.is_contiguous() else torch.empty(q.shape, dtype=dtype, device=out.device)
        flat, step = whole.view(-1), max(1, PIECE // size)
        for first in range(0, len(absmax), step):
            start, end = first * size, min((first + step) * size, flat.numel())
            values = torch.zeros(-(-(end - start) // size) * size, device=out.device)
            packed = q.tensors["codes"][start * bits // 8 : start * bits // 8 + packed_bytes(end - start, bits)]
            scales, here = absmax[first : first + step].contiguous(), values[None, : end - start]
            dequantize_nf4(packed, scales, size, here, levels=self.levels.values)
            values.view(-1, size).add_(centres[first : first + step, None])
            flat[start:end].copy_(values[: end - start])
        return out if whole is out else out.copy_(whole)

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Of 4 bits 4.25 a weight at block 64 with double quantization."""
        return sum(weight_bytes(self.config, out_features, in_features))


def centres_of(values: Tensor, count: int, points: int, levels: Levels) -> Tensor:
    """values (n, S) float32, of whose last block `count` weights are there -> the centre of each block (n,)."""
    padded = values.clone()
    padded[-1, count:] = torch.nan
    median = padded.nanmedian(-1).values  # the lower one of two
    reach = (padded - median[:, None]).abs().nan_to_num(0).amax(-1)
    factors = torch.linspace(-REACH, REACH, 2 * points + 1).tolist()
    # of equals, the one nearest to the median stands
    return best_centres(values, count, median, reach, sorted(factors, key=abs), levels.borders)


def _code(left: Tensor, absmax: Tensor, levels: Levels) -> Tensor:
    """left (n, S) -> nearest levels (n, S) uint8."""
    unit = (left * (1.0 / absmax.clamp(min=SMALLEST))[:, None]).clamp_(-1, 1)
    return torch.bucketize(unit, torch.tensor(levels.borders, device=left.device), out_int32=True).to(torch.uint8)


def _blocks(flat: Tensor, first: int, last: int, size: int) -> tuple[Tensor, Tensor]:
    """Blocks `first` to `last` of flat (N,) as (n, S) float32, and which of their weights are there."""
    part = flat[first * size : last * size].float()
    count = -(-part.numel() // size) * size
    values = torch.zeros(count, device=flat.device)
    values[: part.numel()] = part
    real = torch.arange(count, device=flat.device) < part.numel()
    return values.view(-1, size), real.view(-1, size)


def _store(centres: Tensor) -> tuple[Tensor, Tensor]:
    """centres (blocks,) -> nearest entries of the dynamic map, uint8, and a scale for each 256."""
    scale = torch.stack([part.abs().max() for part in centres.split(SCALE_BLOCK)])
    unit = centres / scale.clamp(min=SMALLEST).repeat_interleave(SCALE_BLOCK)[: len(centres)]
    entries = dynamic_map(centres.device)
    return torch.bucketize(unit, (entries[:-1] + entries[1:]) / 2).to(torch.uint8), scale


def _load(centre: Tensor, scale: Tensor) -> Tensor:
    """What `_store` stored -> centres (blocks,) float32."""
    entries = dynamic_map(centre.device)
    return entries[centre.int()] * scale.repeat_interleave(SCALE_BLOCK)[: len(centre)]
