"""Large buffers on huge pages: 2 MiB that the processor finds with one look instead of 512.

Products walk over matrices row by row, and every row of a wide one lies on a page of its own: with pages of 4 KiB much
of a step goes into looking up where they are. Linux gives huge pages to whoever asks (its default, `madvise`), for
memory that has not been touched yet. Where it cannot, nothing changes; TOPCOAT_HUGE_PAGES=off asks for none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

VARIABLE = "TOPCOAT_HUGE_PAGES"
HUGE = 2 * 2**20  # bytes, on x86-64 and on ARM with pages of 4 KiB
SLAB = 32 * 2**20
"""Bytes that are asked of a CPU at once: most tensors are smaller than a few huge pages, and share them."""
LINE = 64  # bytes: a tensor begins on a cache line
_MADV_HUGEPAGE = 14


@dataclass
class _Slab:
    """One piece of memory, given out from its beginning to its end."""

    memory: Tensor  # (SLAB,) uint8
    used: int = 0


@dataclass
class Slabs:
    """Tensors side by side on huge pages.

    Only the newest slab is kept here. The others live as long as a tensor that lies in them, so what has been replaced
    by something larger gives its memory back.
    """

    device: torch.device
    newest: _Slab | None = None

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor (size,): of the slab if it has room, else of a new one; a large one is by itself."""
        needed = -(-size * dtype.itemsize // LINE) * LINE
        if self.device.type != "cpu" or needed > SLAB // 2:
            return empty_huge(size, dtype, self.device)
        slab = self.newest
        if slab is None or slab.used + needed > SLAB:
            slab = self.newest = _Slab(empty_huge(SLAB, torch.uint8, self.device))
        slab.used += needed
        return slab.memory[slab.used - needed : slab.used].view(dtype)[:size]


def empty_huge(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor (size,); where it is large enough to fill huge pages, from the beginning of one."""
    madvise, nbytes = _madvise() if device.type == "cpu" else None, size * dtype.itemsize
    if madvise is None or nbytes < HUGE // 2:
        return torch.empty(size, dtype=dtype, device=device)
    pages = -(-nbytes // HUGE) * HUGE
    memory = torch.empty(pages + HUGE, dtype=torch.uint8)  # what lies outside the pages is never touched
    begin = -memory.data_ptr() % HUGE
    madvise(memory.data_ptr() + begin, pages, _MADV_HUGEPAGE)  # advice: an error is none
    return memory[begin : begin + nbytes].view(dtype)


@cache
def _madvise() -> Any:
    """The C library's madvise, None where there is no such advice, or it is not wanted."""
    if sys.platform != "linux" or os.environ.get(VARIABLE) == "off":
        return None
    function = ctypes.CDLL(None).madvise  # the C library is there already
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
