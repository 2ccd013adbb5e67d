"""gptq: integers whose zero point is an integer too, in the numbers that GPTQ and AWQ checkpoints hold.

A weight reads back as (code - zero) * scale, with scale float16 and zero a byte: exact in float32, 8 bits times 11.
Made from a weight, scale = (max(w, 0) - min(w, 0)) / (2**bits - 1) and zero = round(-min(w, 0) / scale), or with `sym`
scale = 2 max|w| / (2**bits - 1) and zero = 2**(bits - 1). A zero of 0, where no weight of a group is negative, becomes
1 and the scale a step wider: files of version 1 store zero - 1, and programs that read them differ in what -1 becomes.

A file made with activation order (desc_act) has its columns' groups in `group`, and so has one whose last group is
shorter than the rest; all others count them off. Topcoat makes neither, and reads both exactly.

Frantar et al. 2022, arXiv:2210.17323; Lin et al. 2023 (AWQ), arXiv:2306.00978. How files pack it stands in
model/gptq_tensors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.kernels.integer_dequant import PIECE, dequantize_integers
from topcoat.kernels.packed_codes import unpack_bits
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.bits import pack_bits
from topcoat.quant.fits import nearest, require_no_rows
from topcoat.quant.rows import codes_problem, require_row, row_problem
from topcoat.quant.settings import GptqConfig
from topcoat.quant.sizes import weight_bytes


class GptqIntegers(QuantFormat):
    """Tensors `codes` (O, I * bits / 8) uint8, `scale` (O, L) float16, `zero` (O, L) uint8; maybe `group` (I,)."""

    Config = GptqConfig
    config: GptqConfig
    found: ClassVar[Mapping[str, tuple[torch.dtype, ...]]] = {
        "scale": (torch.bfloat16, torch.float32),
        "group": (torch.int32,),
    }

    @property
    def bits(self) -> int:
        """Of one code."""
        return self.config.bits

    def group_size(self, columns: int) -> int:
        """S of a weight with rows of `columns`."""
        return columns if self.config.group_size == -1 else self.config.group_size

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Raises TopcoatError if groups of this size would cross rows, or codes would not fill whole bytes."""
        require_row(row_problem(self.config, in_features))

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> codes, scales and zeros, rounded to the nearest level."""
        values = check_weight(weight)
        require_no_rows(self.config.rounding)
        rows, columns = values.shape
        self.check_shape(rows, columns)
        groups = columns // self.group_size(columns)
        codes = torch.empty(rows, columns * self.bits // 8, dtype=torch.uint8, device=values.device)
        scale = torch.empty(rows, groups, dtype=torch.float16, device=values.device)
        zero = torch.empty(rows, groups, dtype=torch.uint8, device=values.device)
        step = max(1, PIECE // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            grouped = values[part].float().unflatten(1, (groups, -1))  # (n, L, S)
            require_finite(grouped.abs().amax(-1), weight)
            scale[part], zero[part] = self.fit(grouped)
            found = nearest(grouped, *self.levels(scale[part], zero[part]), self.bits)
            codes[part] = pack_bits(found.flatten(1), self.bits)
        return self.state(codes, scale, zero, (rows, columns))

    def example(self, in_features: int) -> QuantizedWeight:
        """One row, whose last group may be short as files have it."""
        require_row(codes_problem(self.bits, in_features))
        groups = -(-in_features // self.group_size(in_features))
        codes = torch.zeros(1, in_features * self.bits // 8, dtype=torch.uint8)
        zero = torch.zeros(1, groups, dtype=torch.uint8)
        return self.state(codes, torch.zeros(1, groups, dtype=torch.float16), zero, (1, in_features))

    def fit(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """grouped (n, L, S) float32 -> scale float16 and zero uint8, each (n, L)."""
        least, most = torch.aminmax(grouped, dim=-1)
        steps = 2**self.bits - 1
        if self.config.sym:
            scale = torch.maximum(most, -least) / steps * 2
            return scale.half(), torch.full_like(scale, 2 ** (self.bits - 1), dtype=torch.uint8)
        scale = (most.clamp(min=0) / steps - least.clamp(max=0) / steps).half()  # divided first: the range may overflow
        wide = scale.float()
        zero = torch.where(wide > 0, -least.clamp(max=0) / wide, 0.0).round().clamp(0, steps)
        scale = torch.where(zero == 0, (most.clamp(min=0) / (steps - 1)).half(), scale)
        return scale, zero.clamp(min=1).to(torch.uint8)

    def levels(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the levels and the lowest of them, float32; both exact."""
        return scale.float(), -scale.float() * zero.float()

    def state(
        self, codes: Tensor, scale: Tensor, zero: Tensor, shape: tuple[int, int], group: Tensor | None = None
    ) -> QuantizedWeight:
        """What was found by any way of rounding or in a file, as this format stores it; `codes` are packed.

        Raises:
            TopcoatError: a scale is not finite.
        """
        if not bool(torch.isfinite(scale).all()):
            raise TopcoatError(
                f"{int((~torch.isfinite(scale)).sum())} scales of groups are not finite in float16",
                where="model.quantization.format",
                fix="use int4 with scale_dtype: fp32, or check the checkpoint: such weights are seldom meant",
            )
        tensors = {"codes": codes, "scale": scale, "zero": zero} | ({} if group is None else {"group": group})
        return QuantizedWeight("gptq", shape, tensors, {"bits": self.bits})

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """(code - zero) * scale in float32, rounded once to `dtype`."""
        out = target(q, dtype, out)
        codes, scale, zero, group = (q.tensors.get(name) for name in ("codes", "scale", "zero", "group"))
        assert codes is not None
        assert scale is not None
        assert zero is not None
        bits, step = int(q.scalars["bits"]), max(1, PIECE // q.shape[1])
        if group is None:
            return dequantize_integers(codes, scale, -scale.float() * zero.float(), bits, out)  # the same, and exact
        for start in range(0, q.shape[0], step):
            part = slice(start, start + step)
            values = unpack_bits(codes[part], bits).float()  # (n, I)
            values.sub_(zero[part].float()[:, group]).mul_(scale[part].float()[:, group])
            out[part].copy_(values)
        return out

    def nbytes(self, out_features: int, in_features: int) -> int:
        """`bits` a weight and three bytes a group; four more a column in files that have `group`."""
        self.check_shape(out_features, in_features)
        return sum(weight_bytes(self.config, out_features, in_features))
