"""Progress of what may take long, for whoever shows it: nothing is shown of what is done within two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

Advance = Callable[[int, dict[str, Any]], None]
Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, how many units) -> a bar, as a run's listener makes it."""
QUICK_SECONDS = 2.0
Tell = Callable[[str, int, int], None]
"""tell(what, done, total): how far the work is; a total of 0 is not known."""
TOLD_EVERY = 2048
T = TypeVar("T")


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def told(items: Iterable[T], what: str, tell: Tell) -> Iterator[T]:
    """The items, telling now and then how many have come."""
    for done, item in enumerate(items):
        if done % TOLD_EVERY == 0:
            tell(what, done, 0)
        yield item


@contextmanager
def late_bar(bar: Bar | None, label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields advance(done, total), which opens a bar with the total of then once two seconds have passed."""
    began, shown = time.monotonic(), None
    with ExitStack() as stack:

        def advance(done: int, total: int) -> None:
            nonlocal shown
            if bar is None:
                return
            if shown is None and time.monotonic() - began > QUICK_SECONDS:
                shown = stack.enter_context(bar(label, max(total, done)))
            if shown is not None:
                shown(done, {})

        yield advance
