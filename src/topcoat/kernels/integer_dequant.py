"""Integer codes of groups -> weights: w_i = code_i * scale[i // S] + low[i // S] in float32, then rounded once.

Codes have 2, 3, 4 or 8 bits and lie side by side along a row, the first in the lowest bits: four codes to a byte, eight
to three bytes, two to a byte, or one. The compiled code (native/integers.c) takes scales that come from float16, for
which a product with a code is exact in float32: it gives the bits of the definition.

Groups: Xu et al. 2023 (QA-LoRA), arXiv:2309.14717; Frantar et al. 2022 (GPTQ), arXiv:2210.17323.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.dispatch import native_for
from topcoat.kernels.packed_codes import unpack_bits

PIECE = 1 << 17
"""Weights rebuilt at a time, so that float32 temporaries stay in cache."""
VECTOR = 16
"""Weights that the compiled code takes at a time: a group is a multiple of it."""


def dequantize_integers_reference(codes: Tensor, scale: Tensor, low: Tensor, bits: int, out: Tensor) -> Tensor:
    """The definition: codes (O, I * bits / 8) uint8, scale and low (O, L) of any float dtype -> `out` (O, I)."""
    step = max(1, PIECE // out.shape[1])
    for start in range(0, out.shape[0], step):
        part = slice(start, start + step)
        values = unpack_bits(codes[part], bits).float().unflatten(1, (scale.shape[1], -1))  # (n, L, S)
        values.mul_(scale[part].float()[..., None]).add_(low[part].float()[..., None])
        out[part].copy_(values.flatten(1))
    return out


def dequantize_integers(codes: Tensor, scale: Tensor, low: Tensor, bits: int, out: Tensor) -> Tensor:
    """The same bits by the fastest way there is."""
    if not dequantize_integers_native(codes, scale, low, bits, out):
        dequantize_integers_reference(codes, scale, low, bits, out)
    return out


def dequantize_integers_native(codes: Tensor, scale: Tensor, low: Tensor, bits: int, out: Tensor) -> bool:
    """Fills `out` (O, I), rows at any distance, in one compiled pass; False, with `out` untouched, where it cannot."""
    library = native_for(out)
    if library is None or out.dim() != 2 or scale.dtype != torch.float16 or scale.shape != low.shape:
        return False
    rows, columns = out.shape
    group = columns // scale.shape[1] if scale.shape[1] else 0
    if group % VECTOR or group == 0 or scale.shape != (rows, columns // group) or columns % group:
        return False
    if codes.dtype != torch.uint8 or not codes.is_contiguous() or codes.shape != (rows, columns * bits // 8):
        return False
    wide_scale, wide_low = scale.float().contiguous(), low.float().contiguous()
    size = torch.get_num_threads(), out.dtype == torch.bfloat16, rows, columns
    where = out.data_ptr(), out.stride(0), codes.data_ptr(), wide_scale.data_ptr(), wide_low.data_ptr()
    library.dequantize_integers(*size, *where, bits, group)
    return True
