"""Rotary position embedding in place: the pair (x_i, x_{i+P}) of every head turns by its position's angle.

x_i' = x_i cos - x_{i+P} sin, x_{i+P}' = x_{i+P} cos + x_i sin for i < P; dims from 2 P on stay as they are (partial
rotary). A rotation's inverse is its transpose, so the backward is the same pass with -sin and nothing is saved.

Su et al. 2021, arXiv:2104.09864, in the half-split order of Llama.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from topcoat.kernels.dispatch import is_flat_float, native_for, place, wide_dtype
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.structures import fields, places
from topcoat.kernels.triton_ops.available import triton_can


class _Rope(ctypes.Structure):
    """struct rope of native/rope.c."""

    _fields_ = fields(f"threads bf16 tokens heads pairs {places('x')} *cos *sin inverse")


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """The definition: x (T, H, K), cos and sin (T, P) float32, P <= K / 2 -> a rotated copy."""
    P, wide = cos.shape[-1], x.to(wide_dtype(x.dtype))
    first, second, rest = wide[..., :P], wide[..., P : 2 * P], wide[..., 2 * P :]
    cos, sin = cos[:, None], (-sin if inverse else sin)[:, None]  # (T, 1, P)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1).to(x.dtype)


def rope_(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """Rotates x (T, H, K) in place by its positions' angles, or back with `inverse`; returns x."""
    angles, fit = (len(x), cos.shape[-1]), x.dim() == 3 and 2 * cos.shape[-1] <= x.shape[-1]
    if fit and triton_can(x, beside=((cos, angles), (sin, angles))):
        from topcoat.kernels.triton_ops import rope as fused

        return fused.rope_(x, cos, sin, inverse)
    library = native_for(x)
    if library is not None and x.dim() == 3:
        (T, H, K), P = x.shape, cos.shape[-1]
        if 2 * P <= K and is_flat_float(cos, T, P) and is_flat_float(sin, T, P):
            size = torch.get_num_threads(), x.dtype == torch.bfloat16, T, H, P
            library.rope(_Rope(*size, *place(x), cos.data_ptr(), sin.data_ptr(), inverse), x, cos, sin)
            return x
    settle()
    return x.copy_(rope_reference(x, cos, sin, inverse))
