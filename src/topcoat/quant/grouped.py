"""int2, int3, int4: asymmetric integers, a scale and a lowest value for each group of a row.

scale and low are found by one of FITS (fits.py) and rounded to their storage dtype; then
code = round((w - low) / scale), and a weight reads back as code * scale + low.

This is the base of QA-LoRA (Xu et al. 2023, arXiv:2309.14717), with low in place of a zero point: a zero point that is
an integer could not take up what an adapter adds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.kernels.integer_dequant import PIECE, dequantize_integers
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.bits import pack_bits
from topcoat.quant.dense import DTYPES
from topcoat.quant.fits import FITS, nearest, require_no_rows
from topcoat.quant.rows import require_row, row_problem
from topcoat.quant.settings import IntConfig
from topcoat.quant.sizes import weight_bytes


class Grouped(QuantFormat):
    """Tensors `codes` (O, I * bits / 8) uint8, `scale` and `low` (O, I / S) in the scales' dtype."""

    Config = IntConfig
    config: IntConfig

    @property
    def bits(self) -> int:
        """Of one code."""
        return self.config.bits

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Raises TopcoatError if groups of this size would cross rows."""
        require_row(row_problem(self.config, in_features))

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> codes, scales and lows, rounded to the nearest level."""
        values = check_weight(weight)
        require_no_rows(self.config.rounding)
        self.check_shape(values.shape[0], values.shape[1])
        rows, columns = values.shape
        groups = columns // self.config.group_size
        codes = torch.empty(rows, columns * self.bits // 8, dtype=torch.uint8, device=values.device)
        scale = torch.empty(rows, groups, dtype=DTYPES[self.config.scale_dtype], device=values.device)
        low = torch.empty_like(scale)
        step = max(1, PIECE // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            grouped = values[part].float().unflatten(1, (groups, -1))  # (n, L, S)
            require_finite(grouped.abs().amax(-1), weight)
            scale[part], low[part] = self.fit(grouped)
            codes[part] = pack_bits(nearest(grouped, scale[part], low[part], self.bits).flatten(1), self.bits)
        self._check_range(scale, low, weight)
        return self.state(codes, scale, low, (rows, columns))

    def group_size(self, columns: int) -> int:
        """S, the same for rows of any length."""
        return self.config.group_size

    def fit(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """grouped (n, L, S) float32 -> scale and low (n, L) in the scales' dtype."""
        return FITS[self.config.rounding](grouped, self.bits, DTYPES[self.config.scale_dtype])

    def levels(self, scale: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the levels and the lowest of them, float32."""
        return scale.float(), low.float()

    def state(self, codes: Tensor, scale: Tensor, low: Tensor, shape: tuple[int, int]) -> QuantizedWeight:
        """What was found by any way of rounding, as this format stores it; `codes` are packed."""
        tensors = {"codes": codes, "scale": scale, "low": low}
        return QuantizedWeight(self.config.format, shape, tensors, {"group_size": self.config.group_size})

    def _check_range(self, scale: Tensor, low: Tensor, weight: Tensor) -> None:
        if bool(torch.isfinite(scale).all() & torch.isfinite(low).all()):
            return
        raise TopcoatError(
            f"weights up to {float(weight.abs().max()):.3g} are too large for scales in {self.config.scale_dtype}",
            where="model.quantization.scale_dtype",
            fix="set scale_dtype: fp32, or check the checkpoint: such weights are seldom meant",
        )

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """code * scale + low in float32, rounded once to `dtype`."""
        out = target(q, dtype, out)
        codes, scale, low = (q.tensors[name] for name in ("codes", "scale", "low"))
        return dequantize_integers(codes, scale, low, self.bits, out)

    def nbytes(self, out_features: int, in_features: int) -> int:
        """`bits` a weight, and two numbers a group: 5 bits a weight for int4 in groups of 32."""
        self.check_shape(out_features, in_features)
        return sum(weight_bytes(self.config, out_features, in_features))
