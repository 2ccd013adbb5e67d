"""Who hears what a run does: the terminal, a test, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Advance = Callable[[int, dict[str, Any]], None]
"""(how many are done, figures to show)."""


class Listener(Protocol):
    """What a run tells while it works."""

    def say(self, text: str) -> None:
        """One line of news."""

    def show(self, renderable: Any) -> None:
        """Something rich can print: a table, coloured text."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A bar of `total` units while something long is done."""


class Silent:
    """Hears everything, says nothing: the default in Python."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, renderable: Any) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        """Nothing."""
        yield lambda done, figures: None
