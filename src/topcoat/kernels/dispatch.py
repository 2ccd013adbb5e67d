"""Which tensors the compiled code takes: CPU, bfloat16 or float32, rows without gaps, nothing that autograd follows."""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.kernels.native.library import Library, native_library

NATIVE_DTYPES = (torch.bfloat16, torch.float32)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums, exponentials and other statistics of tensors of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def native_for(x: Tensor, *alike: Tensor | None) -> Library | None:
    """The library if it takes x, and the tensors `alike` with the same shape and dtype; None: the plain way.

    Whatever is not exactly as promised goes the plain way, where torch says what is wrong with it.
    """
    library = native_library()
    if library is None or not _takes(x):
        return None
    for other in alike:
        if other is not None and not (other.dtype == x.dtype and other.shape == x.shape and _takes(other)):
            return None
    return library


def _takes(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in NATIVE_DTYPES and x.stride(-1) == 1 and not _is_followed(x)


def is_bf16_rows(x: Tensor) -> bool:
    """Is x a bfloat16 CPU tensor whose rows have no gaps: what the compiled code on tiles reads and writes?"""
    return x.is_cpu and x.dtype == torch.bfloat16 and x.stride(-1) == 1 and not _is_followed(x)


def place(x: Tensor) -> tuple[int, int, int]:
    """Address of x (T, D) or (T, H, K), its stride over T and its stride over H (0 without heads), in elements."""
    return x.data_ptr(), x.stride(0), x.stride(1) if x.dim() == 3 else 0


NOWHERE = (0, 0, 0)
"""The `place` of a tensor that is not there."""


def is_flat_float(x: Tensor, *shape: int) -> bool:
    """Is x a float32 CPU tensor of this shape, without gaps: a weight, a row of statistics, an angle?"""
    return x.dtype == torch.float32 and x.shape == shape and x.is_cpu and x.is_contiguous() and not _is_followed(x)


def _is_followed(x: Tensor) -> bool:
    """Would autograd miss what the compiled code does with x? Not under no_grad, nor inside an autograd function."""
    return x.requires_grad and torch.is_grad_enabled()
