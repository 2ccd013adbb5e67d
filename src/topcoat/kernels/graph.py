"""Work of a GPU that is launched at one stroke: captured once, and replayed on whatever its tensors hold by then.

A launch costs the host 4 to 5 us, and a decoder layer makes some 35 of them, so a small model waits for its host. A
CUDA graph keeps the kernels of a whole forward and backward with their arguments: addresses, shapes and numbers as they
were while it was captured. So everything that differs between two replays has to lie in tensors that stand still, and
nothing inside may wait for the device. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


class Capture(Protocol):
    """A way to keep what a function asks of a device."""

    def aside(self) -> AbstractContextManager[Any]:
        """Inside, work runs where captures are made: what a capture must find allocated is allocated there."""
        ...

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Keeps what `compute` asks for, without doing it; what comes back does it.

        Raises RuntimeError for work that cannot be kept, such as waiting for the device.
        """
        ...


class CudaCapture:
    """CUDA graphs of one device, all in one pool of memory: no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream of the captures, in line with the current one."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of `compute`, which has run once `aside`, so that no buffer and no kernel is made in here."""
        here = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads (trackers, a dashboard) may call CUDA meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                compute()
        finally:
            torch.cuda.set_stream(here)  # torch leaves its own stream standing where ending the capture fails
        replay: Callable[[], None] = graph.replay
        return replay
