"""Buffers, not allocations: every large tensor of a training step has a name and is reused by the next step.

Memory touched for the first time is slow (the kernel hands it out page by page, and clears each), and an allocator that
takes and returns it tens of times a layer makes every step pay again. An arena keeps one buffer for each name, as large
as the largest request so far; the first micro batch of a run is its worst, so after it nothing grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from topcoat.kernels.huge_pages import Slabs
from topcoat.kernels.moves import note_move


@dataclass
class Arena:
    """Named buffers on one device. What a buffer holds means something until the same name is taken again."""

    device: torch.device
    buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)
    views: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)
    """Each buffer in the shape it was last asked for: mostly the next shape too, and a view takes longer to make."""
    slabs: Slabs = field(init=False)

    def __post_init__(self) -> None:
        self.slabs = Slabs(self.device)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The buffer `name` as a contiguous tensor of `shape`, uninitialised when it is new or has grown."""
        key = (name, dtype)
        view = self.views.get(key)
        if view is not None and view.shape == shape:
            return view
        size, buffer = math.prod(shape), self.buffers.get(key)
        if buffer is None or buffer.numel() < size:
            if buffer is not None:
                note_move()
            self.buffers.pop(key, None)  # the small one goes before the large one comes
            self.views.pop(key, None)
            buffer = view = None
            with torch.inference_mode(False):  # born in inference mode, it could never be written outside it
                buffer = self.slabs.empty(size, dtype)
            self.buffers[key] = buffer
        with torch.inference_mode(False):
            view = self.views[key] = buffer[:size].view(shape)
        return view

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The same, filled with zeros."""
        return self.take(name, shape, dtype).zero_()

    def nbytes(self) -> int:
        """Bytes that all buffers hold now."""
        return sum(buffer.nbytes for buffer in self.buffers.values())
