"""RMSNorm of rows, forward and backward by hand: n = x * rstd * weight, rstd = 1 / sqrt(mean(x²) + eps).

The sums and rstd are float32 whatever the dtype of x (float64 for float64), and a value is rounded once, at the end.
Backward, with x̂ = x * rstd and g = dn * weight: dx = residual + rstd * (g - x̂ * mean(g * x̂)). The weight is a frozen
base's and gets no gradient. A family whose norm multiplies by 1 + w passes 1 + w.

Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from topcoat.kernels.dispatch import NOWHERE, is_flat_float, native_for, place, wide_dtype
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.library import Library
from topcoat.kernels.native.structures import fields, places
from topcoat.kernels.triton_ops.available import triton_can
from topcoat.kernels.triton_ops.launch import WIDEST_ROW

_SIZE = "threads bf16 rows heads n"


class _Forward(ctypes.Structure):
    """struct forward of native/rms_norm.c."""

    _fields_ = fields(f"{_SIZE} {places('x delta out')} *weight *rstd ~eps")


class _Backward(ctypes.Structure):
    """struct backward of native/rms_norm.c."""

    _fields_ = fields(f"{_SIZE} {places('dn x residual out')} *weight *rstd")


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The definition: x (..., D), weight (D,) -> (n like x, rstd (...,) float32)."""
    wide = x.to(wide_dtype(x.dtype))
    rstd = (wide.square().mean(-1) + eps).rsqrt()  # (...,)
    return (wide * rstd[..., None] * weight).to(x.dtype), rstd


def add_rms_norm_reference(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: (sum, n, rstd) with sum = x + delta rounded to its dtype and n the norm of that."""
    total = x + delta
    return total, *rms_norm_reference(total, weight, eps)


def rms_norm_backward_reference(
    dn: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, residual: Tensor | None = None
) -> Tensor:
    """The definition: the gradient dn (..., D) of a norm whose input was x -> dx (..., D), plus `residual`."""
    wide = wide_dtype(x.dtype)
    normed, scaled = x.to(wide) * rstd[..., None], dn.to(wide) * weight
    dx = rstd[..., None] * (scaled - normed * (normed * scaled).mean(-1, keepdim=True))
    return (dx if residual is None else residual + dx).to(x.dtype)


def _triton_can(x: Tensor, weight: Tensor, *alike: Tensor | None, rstd: Tensor | None = None) -> bool:
    beside = ((weight, x.shape[-1:]), (rstd, x.shape[:-1]))
    return x.dim() in (2, 3) and x.shape[-1] <= WIDEST_ROW and triton_can(x, *alike, beside=beside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The norm of x (T, D) or (T, H, K) into `out` (which may be x): (n like x, rstd float32 (T,) or (T, H))."""
    if _triton_can(x, weight, out):
        from topcoat.kernels.triton_ops import rms_norm as fused

        return fused.rms_norm(x, weight, eps, out)
    library = native_for(x, out)
    if library is not None and x.dim() in (2, 3) and is_flat_float(weight, x.shape[-1]):
        return _native_norm(library, x, None, weight, eps, out)
    settle()
    n, rstd = rms_norm_reference(x, weight, eps)
    return (n if out is None else out.copy_(n)), rstd


def add_rms_norm(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`delta` (T, D) becomes x + delta in place; returns the norm of that, and its rstd (T,)."""
    if x.dim() == 2 and _triton_can(x, weight, delta, out):
        from topcoat.kernels.triton_ops import rms_norm as fused

        return fused.add_rms_norm(x, delta, weight, eps, out)
    library = native_for(x, delta, out)
    if library is not None and x.dim() in (2, 3) and is_flat_float(weight, x.shape[-1]):
        return _native_norm(library, x, delta, weight, eps, out)
    settle()
    total, n, rstd = add_rms_norm_reference(x, delta, weight, eps)
    delta.copy_(total)
    return (n if out is None else out.copy_(n)), rstd


def rms_norm_backward(
    dn: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """dx = residual + the gradient through the norm, into `out`, which may be `dn` or `residual` itself."""
    if rstd.is_contiguous() and _triton_can(x, weight, dn, residual, out, rstd=rstd):
        from topcoat.kernels.triton_ops import rms_norm as fused

        return fused.rms_norm_backward(dn, x, weight, rstd, residual, out)
    library, D = native_for(x, dn, residual, out), x.shape[-1]
    if library is not None and x.dim() in (2, 3) and is_flat_float(weight, D) and is_flat_float(rstd, *x.shape[:-1]):
        out = x.new_empty(x.shape) if out is None else out
        at_residual = NOWHERE if residual is None else place(residual)
        where = (*place(dn), *place(x), *at_residual, *place(out), weight.data_ptr(), rstd.data_ptr())
        library.rms_norm_backward(_Backward(*_size(x), *where), dn, x, residual, out, weight, rstd)
        return out
    settle()
    dx = rms_norm_backward_reference(dn, x, weight, rstd, residual)
    return dx if out is None else out.copy_(dx)


def _native_norm(
    library: Library, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape) if out is None else out
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    where = (*place(x), *(NOWHERE if delta is None else place(delta)), *place(out))
    call = _Forward(*_size(x), *where, weight.data_ptr(), rstd.data_ptr(), eps)
    library.rms_norm(call, x, delta, out, weight, rstd)
    return out, rstd


def _size(x: Tensor) -> tuple[int, bool, int, int, int]:
    """How the structures begin: threads, is it bf16, rows, heads, numbers in a row."""
    T, H = x.shape[0], x.shape[1] if x.dim() == 3 else 1
    return torch.get_num_threads(), x.dtype == torch.bfloat16, T * H, H, x.shape[-1]
