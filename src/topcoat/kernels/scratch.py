"""One reused buffer for each dtype and device, in which a frozen weight stands dense while one product reads it.

A quantized linear needs its whole weight for the length of one matrix product, in the forward and again in the
backward. Giving every product a fresh tensor of that size makes the allocator return and fault the same pages tens of
times a step; one buffer, as large as the largest weight, serves them all.

A buffer is lent inside a `with` and is free again when the `with` ends; the values in it mean nothing after that. Who
finds it taken (the same thread inside a lender, another thread) gets a temporary instead, so nothing waits and nothing
is overwritten. On a GPU the key holds the stream too: work queued on one stream runs in order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from topcoat.kernels.huge_pages import empty_huge


@dataclass
class _Slot:
    """One buffer and the lock of whoever uses it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    buffer: Tensor | None = None


_slots: dict[tuple[torch.dtype, torch.device, int], _Slot] = {}


@contextmanager
def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Lends an uninitialised tensor of `shape`; read it and write it only inside the `with`."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    slot = _slots.setdefault((dtype, device, stream), _Slot())
    if not slot.lock.acquire(blocking=False):
        yield torch.empty(shape, dtype=dtype, device=device)
        return
    try:
        size = math.prod(shape)
        if slot.buffer is None or slot.buffer.numel() < size:
            slot.buffer = None  # free the small one before the large one is made
            # a tensor born in inference mode could never be written outside it: generate first, train later
            with torch.inference_mode(False):
                slot.buffer = empty_huge(size, dtype, device)
        yield slot.buffer[:size].view(shape)
    finally:
        slot.lock.release()


def scratch_bytes() -> int:
    """Bytes that all the buffers hold now."""
    return sum(slot.buffer.nbytes for slot in _slots.values() if slot.buffer is not None)


def release_scratch() -> None:
    """Gives the memory of every buffer that is not in use back to the allocator."""
    for slot in list(_slots.values()):
        if slot.lock.acquire(blocking=False):
            slot.buffer = None
            slot.lock.release()
