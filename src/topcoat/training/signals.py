"""Ctrl-C and SIGTERM, politely: the first asks the run to save and stop, the second ends the process at once.

Every loop looks at `stop` where it can leave well (the trainer after an optimizer step), or calls `check()` where there
is nothing to save. Exit codes are the shell's: 130 for SIGINT, 143 for SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from topcoat.errors import Interrupted, TopcoatError

HANDLED = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Stop:
    """A stop that was asked for."""

    name: str
    """SIGINT or SIGTERM."""
    exit_code: int
    """128 + the signal's number: 130 or 143."""


class StopSignals:
    """While inside, SIGINT and SIGTERM set `stop`; afterwards they do again what they did before.

    They are caught even where the shell started the process with SIGINT ignored (`topcoat train … &` in a script).
    A forked child that gets one dies of it, as it would have before.
    """

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self._process = os.getpid()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> StopSignals:
        """Raises TopcoatError: not the main thread, where Python delivers signals."""
        if threading.current_thread() is not threading.main_thread():
            raise TopcoatError(
                "signals can only be caught in the main thread",
                threading.current_thread().name,
                "call it from the main thread, or without StopSignals",
            )
        self._process = os.getpid()
        self._before = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by C code, out of reach
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # ends the watcher
            self._pipe = None

    def check(self) -> None:
        """Leave a loop that has no state worth saving.

        Raises:
            Interrupted: a stop was asked for; `exit_code` is the signal's.
        """
        if self.stop is not None:
            error = Interrupted(f"{self.stop.name}: stopped", "", "the same command starts again")
            error.exit_code = self.stop.exit_code
            raise error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self._process:  # a forked worker: not its business
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.stop is None:
            self.stop = Stop(name, 128 + number)
            _say(f"{name}: saving at the end of this step, then stopping; once more ends it at once")
            self._watch()
        else:
            _leave(number)

    def _watch(self) -> None:
        """From now on a signal is seen even while the main thread is inside one long call, such as a backward.

        Python runs handlers between bytecodes of the main thread; the wake-up pipe is written at once, by C.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._pipe = (read, write)
        self._wakeup_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_leave_on_signal, args=(read,), daemon=True, name="second signal").start()


def _leave_on_signal(pipe: int) -> None:
    while data := os.read(pipe, 1):
        if data[0] in HANDLED:
            _leave(data[0])
    os.close(pipe)


def _leave(number: int) -> None:
    _say(f"{signal.Signals(number).name} again: leaving now; the last checkpoint stands")
    os._exit(128 + number)


def _say(line: str) -> None:
    """To stderr, past every buffer: a handler may run in the middle of a print."""
    try:
        os.write(2, f"\n{line}\n".encode())
    except OSError:
        return  # stderr is gone; the stop counts all the same
