"""One reused buffer for each dtype and device, in which a frozen weight stands dense while one product reads it.

A quantized linear needs its whole weight for the length of one matrix product, in the forward and again in the
backward. Giving every product a fresh tensor of that size makes the allocator return and fault the same pages tens of
times a step; one buffer, as large as the largest weight, serves them all.

A buffer is lent inside a `with` and is free again when the `with` ends; the values in it mean nothing after that. Who
finds it taken (inside a lender, or in another thread on the same stream) gets a temporary instead, so nothing waits
and nothing is overwritten. The key holds the stream of a GPU, and on a CPU the thread: what is put down on one runs in
order.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from topcoat.kernels.huge_pages import empty_huge
from topcoat.kernels.moves import note_move

MOST_VIEWS = 64


@dataclass
class _Slot:
    """One buffer and the lock of whoever uses it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    buffer: Tensor | None = None
    views: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """The buffer in shapes it was asked for: the same ones come in every step, and a view takes longer to make."""

    def view(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer as `shape`, grown if it has to be."""
        view = self.views.get(shape)
        if view is not None:
            return view
        size = math.prod(shape)
        # a tensor born in inference mode could never be written outside it: generate first, train later
        with torch.inference_mode(False):
            if self.buffer is None or self.buffer.numel() < size:
                self.release()  # free the small one before the large one is made
                self.buffer = empty_huge(size, dtype, device)
            if len(self.views) == MOST_VIEWS:
                self.views.clear()
            view = self.views[shape] = self.buffer[:size].view(shape)
        return view

    def release(self) -> None:
        """Let go of the memory."""
        if self.buffer is not None:
            note_move()
        self.views.clear()
        self.buffer = None


_slots: dict[tuple[torch.dtype, torch.device, int], _Slot] = {}


class scratch:
    """Lends an uninitialised tensor of `shape` for a `with`; read it and write it only inside."""

    # a class, not a generator: hundreds of loans a step, each in a cold cache
    __slots__ = ("_asked", "_slot")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._asked = shape, dtype, device
        # compiled calls that wait (native/calls.py) use it after the `with`, in this thread's order
        line = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else threading.get_ident()
        key = dtype, device, line
        self._slot: _Slot | None = _slots.get(key) or _slots.setdefault(key, _Slot())

    def __enter__(self) -> Tensor:
        slot = self._slot
        assert slot is not None
        if not slot.lock.acquire(blocking=False):
            self._slot = None
            return torch.empty(self._asked[0], dtype=self._asked[1], device=self._asked[2])
        try:
            return slot.view(*self._asked)
        except BaseException:  # no memory: nobody holds what was not lent
            slot.lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        if self._slot is not None:
            self._slot.lock.release()


def scratch_bytes() -> int:
    """Bytes that all the buffers hold now."""
    return sum(slot.buffer.nbytes for slot in _slots.values() if slot.buffer is not None)


def release_scratch() -> None:
    """Gives the memory of every buffer that is not in use back to the allocator."""
    for slot in list(_slots.values()):
        if slot.lock.acquire(blocking=False):
            slot.release()
            slot.lock.release()
