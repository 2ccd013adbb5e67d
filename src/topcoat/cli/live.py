"""What a run shows while it works: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topcoat.runs.listener import Advance
from topcoat.units import show_bytes, show_seconds

LINE_EVERY_S = 5.0  # without a terminal: a line this often, so that a log stays readable


class Terminal:
    """The listener of the command line."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """One line of news."""
        self.console.print(text, markup=False)

    def show(self, renderable: Any) -> None:
        """A table or coloured text."""
        self.console.print(renderable)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        """A bar with the figures of the last step, or plain lines."""
        with self._bar(label, total) if self.console.is_terminal else self._lines(label, total) as advance:
            yield advance

    @contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[said]}"), console=self.console) as bar:
            task = bar.add_task(label, total=total, said="")

            def advance(done: int, figures: dict[str, Any]) -> None:
                bar.update(task, completed=done)
                if "validation_loss" in figures:
                    bar.console.print(_validation(figures))
                elif figures:
                    bar.update(task, said=_said(figures))

            yield advance

    @contextmanager
    def _lines(self, label: str, total: int) -> Iterator[Advance]:
        began = said_at = time.monotonic()
        self.console.print(f"{label}: {total}", markup=False)

        def advance(done: int, figures: dict[str, Any]) -> None:
            nonlocal said_at
            now = time.monotonic()
            if "validation_loss" in figures:
                self.console.print(_validation(figures), markup=False)
            elif done == total or now - said_at >= LINE_EVERY_S:
                said_at = now
                left = (now - began) / max(1, done) * (total - done)
                parts = [f"{label} {done}/{total}", _said(figures), f"{show_seconds(left)} left"]
                self.console.print("  ".join(part for part in parts if part), markup=False)

        yield advance


def _said(figures: dict[str, Any]) -> str:
    """The figures of one step in a few words."""
    if "loss" not in figures:
        return ""
    memory = show_bytes(figures["memory_bytes"])
    return f"loss {figures['loss']:.4f}  {figures['tokens_per_s']:,.0f} tokens/s  {memory}"


def _validation(figures: dict[str, Any]) -> str:
    return f"step {figures['step']}: validation loss {figures['validation_loss']:.4f}"
