"""int8: symmetric rounding, one scale for each output row.

absmax = max|w| over the row and code = round(127 w / absmax), so no weight moves by more than absmax / 254. Codes and
row maxima are those of bitsandbytes' int8 vectorwise quantization of the float32 weight (`weight` and `SCB` in its
files; its own layer rounds the weight to float16 first).

Paper: Dettmers et al. 2022 (LLM.int8()), arXiv:2208.07339, section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.int8_dequant import PIECE, dequantize_int8
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.settings import Int8Config
from topcoat.quant.sizes import weight_bytes


class Int8(QuantFormat):
    """8-bit integers: tensors `codes` (O, I) int8 and `absmax` (O,) float32."""

    Config = Int8Config

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> codes in [-127, 127] and row maxima; an all-zero row gets codes 0."""
        values = check_weight(weight)
        codes = torch.empty(values.shape, dtype=torch.int8, device=values.device)
        absmax = torch.empty(len(values), dtype=torch.float32, device=values.device)  # (O,)
        step = max(1, PIECE // values.shape[1])
        for start in range(0, len(values), step):
            rows = values[start : start + step].float()
            largest = absmax[start : start + step] = rows.abs().amax(1)
            # a row of zeros, or one so small that 127 / absmax overflows, would give 0 * inf
            factor = torch.where(largest > 0, 127.0 / largest, 0.0).clamp(max=torch.finfo(torch.float32).max)
            codes[start : start + step] = (rows * factor[:, None]).round_().to(torch.int8)
        require_finite(absmax, weight)
        return QuantizedWeight("int8", (weight.shape[0], weight.shape[1]), {"codes": codes, "absmax": absmax})

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """code * (absmax / 127) in float32, rounded once to `dtype`."""
        return dequantize_int8(q.tensors["codes"], q.tensors["absmax"], target(q, dtype, out))

    def nbytes(self, out_features: int, in_features: int) -> int:
        """One byte a weight and four a row."""
        return sum(weight_bytes(self.config, out_features, in_features))
