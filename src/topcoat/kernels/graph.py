"""Work of a GPU that is launched at one stroke: captured once, and replayed on whatever its tensors hold by then.

A launch costs the host 4 to 5 us, and a decoder layer makes some 35 of them (engine study, 2.10: counted by reading
code), so a small model waits for its host. A CUDA graph keeps the kernels of a whole forward and backward with their
arguments: addresses, shapes and numbers as they were while it was captured. So everything that differs between two
replays has to lie in tensors that stand still, and nothing inside may wait for the device.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

Graphs of one device live and die together: in recent torch the end of one frees the matrix library's workspace of
its stream, whose address the others hold (pytorch issue 193402).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Protocol

import torch


class Capture(Protocol):
    """A way to keep what a function asks of a device."""

    def aside(self) -> AbstractContextManager[Any]:
        """Inside, work runs where captures are made: what a capture must find allocated is allocated there."""
        ...

    def without_waits(self) -> AbstractContextManager[Any]:
        """The same, and copying to the host or from it, the waits that happen, raises RuntimeError."""
        ...

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Keeps what `compute` asks for, without doing it; what comes back does it.

        Raises RuntimeError for work that cannot be kept.
        """
        ...

    def forget(self) -> None:
        """No captured work is used any more; its memory is free once nothing holds it."""
        ...


class CudaCapture:
    """CUDA graphs of one device, all in one pool of memory: no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, _stream(device)
        self.forget()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream of the captures, in line with the current one."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:  # whoever clears up after an error finds what was launched before it done
            here.wait_stream(self.stream)

    @contextmanager
    def without_waits(self) -> Iterator[None]:
        """A wait inside a capture leaves torch's allocator unusable (up to 2.12), so it is looked for before.

        The mode is that of the process: another thread that waits meanwhile gets the error.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls the mode a prototype, each time
            torch.cuda.set_sync_debug_mode("error")
        try:
            with self.aside():
                yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of `compute`, which has run once `aside`, so that no buffer and no kernel is made in here."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            try:
                # other threads (trackers, a dashboard) may call CUDA meanwhile
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    compute()
            except RuntimeError as error:
                raise RuntimeError(str(_first(error))) from error  # torch tells of the capture's end, not of its cause
            finally:
                torch.cuda.set_stream(here)  # torch leaves its own stream standing where ending the capture fails
        replay: Callable[[], None] = graph.replay
        return replay

    def forget(self) -> None:
        """The next graphs get a pool of their own: torch takes no more into one whose graphs are gone."""
        self.pool = torch.cuda.graph_pool_handle()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures of a device: buffers are kept by stream (scratch.py)."""
    return torch.cuda.Stream(device)


def _first(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error
