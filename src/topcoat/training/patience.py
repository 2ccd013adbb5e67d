"""A full disk pauses a run instead of ending it: the save is tried again until there is room or a stop is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
POLL_S = 0.2  # how soon a wait notices that a stop was asked

T = TypeVar("T")


def save_with_patience(
    save: Callable[[], T],
    on_wait: Callable[[TopcoatError], None],
    stop: Callable[[], bool],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `save()` returns, however long the disk is full: training pauses, says so, and tries again.

    `on_wait` gets the message (what is needed, what is free) before each pause; pauses double from 1 s to 60 s. When
    `stop()` says so the waiting ends, with one last try.

    Raises:
        DiskFull: a stop was asked and the last try failed too.
        TopcoatError: something that waiting does not cure.
    """
    pause = FIRST_PAUSE_S
    while True:
        try:
            return save()
        except DiskFull as error:
            problem = error.problems[0]
            advice = f"{problem.fix}. Training is paused and goes on by itself once there is room; Ctrl-C stops it"
            on_wait(TopcoatError(problem.what, problem.where, advice))
        waited = 0.0
        while waited < pause and not stop():
            sleep(POLL_S)
            waited += POLL_S
        if stop():
            return save()
        pause = min(2 * pause, LONGEST_PAUSE_S)
