"""Calls of compiled code that are put down and made together, without Python between them.

After a large product the second cache holds tiles, and every return to Python begins with misses: the interpreter's
work for a step of SmolLM2-135M takes 27 ms by itself and 87 ms between products. Inside `together` the functions that
take one structure (`Deferrable`) are only put down, with the tensors that it points to; the calls are made in their
order when the `with` ends, when there are MOST of them, or when `settle` is called.

Whoever reads or writes such a tensor in any other way settles first. All other functions of the library do. Torch does
not: what runs inside `together` calls `settle` before torch touches numbers, and a test holds every path through the
blocks to that (tests/model/test_fuse_together.py).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MOST = 256
"""Calls that wait at most: the processor multiplies nothing while they are put down."""

MakeAll = Callable[[Any, int], None]
"""Makes the calls of an array: `topcoat_make_calls` of native/calls.c."""


class _Waiting(threading.local):
    """The calls that wait on this thread, each (function, address of its structure, the structure, its tensors)."""

    calls: list[tuple[int, int, ctypes.Structure, tuple[Any, ...]]] | None = None
    """None outside `together`: everything runs at once."""
    make_all: MakeAll | None = None


_here = _Waiting()


class Deferrable:
    """A function of the library that takes the address of one structure and returns nothing."""

    def __init__(self, function: Any, make_all: MakeAll) -> None:
        self._function, self._make_all = function, make_all
        self._address: int = ctypes.cast(function, ctypes.c_void_p).value or 0

    def __call__(self, argument: ctypes.Structure, *tensors: Any) -> None:
        """Call it, now or later; until then `argument` and the tensors that it points to are kept."""
        calls = _here.calls
        if calls is None:
            self._function(ctypes.byref(argument))
            return
        calls.append((self._address, ctypes.addressof(argument), argument, tensors))
        _here.make_all = self._make_all
        if len(calls) >= MOST:
            settle()


def settle() -> None:
    """Make the calls that wait on this thread."""
    calls = _here.calls
    if calls:
        addresses = [address for call in calls for address in call[:2]]
        assert _here.make_all is not None
        _here.make_all((ctypes.c_void_p * len(addresses))(*addresses), len(calls))
        calls.clear()


def waits() -> bool:
    """Whether calls wait on this thread."""
    return bool(_here.calls)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, nothing waits: for code that does not know of waiting calls. Those that waited before are made first."""
    settle()
    before, _here.calls = _here.calls, None
    try:
        yield
    finally:
        _here.calls = before


@contextmanager
def together() -> Iterator[None]:
    """Inside, calls are put down; at the end all have been made. Where an error leaves it, those that wait are not."""
    if _here.calls is not None:  # inside another, which will make them
        yield
        return
    _here.calls = []
    try:
        yield
        settle()
    finally:
        _here.calls = None
