"""Workers: child processes that encode batches of rows; what comes back is in the order of what was given."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from topcoat.data.child import BETWEEN
from topcoat.data.rows import place
from topcoat.data.sandbox import Child, ChildDied, TemplateStopped, kept_child
from topcoat.data.words import NotSeparable
from topcoat.errors import TopcoatError

BATCH_ROWS = 512
BATCH_CHARACTERS = 2**19  # of one request: what a crash costs, and what waits in memory for each worker
MOST_WORKERS = 4  # more wait for the one process that reads and writes
ALONE = 8  # requests of a small file, for which no second process is worth starting: one costs a second

Rows = list[tuple[int, dict[str, Any]]]


class FormatUnknown(TopcoatError):
    """The rows of a file are of no format that is read."""


@dataclass(frozen=True)
class Encoded:
    """The answer to one request: `values` and the bytes of its arrays."""

    values: dict[str, Any]
    blob: bytes


class Workers:
    """Up to `count` children that encode by `arguments` of an Encoder. Leaving ends those started here."""

    def __init__(self, arguments: dict[str, Any], count: int | None = None) -> None:
        self._plain_arguments = arguments
        self.count = count or max(1, min(MOST_WORKERS, os.cpu_count() or 1))
        self._free: SimpleQueue[Child] = SimpleQueue()
        self._started: list[Child] = []
        self._starting = threading.Lock()
        self._threads = ThreadPoolExecutor(self.count, "encode")

    @cached_property
    def _arguments(self) -> tuple[bytes, str]:
        """What a child prepares, and a name for it; made when the first child is asked."""
        arguments = pickle.dumps(self._plain_arguments)
        return arguments, hashlib.sha256(arguments).hexdigest()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = self._started[:1] if error is None else []
        for child in self._started:
            if child not in kept:
                child.close()  # a thread that waits for it wakes up
        self._threads.shutdown(cancel_futures=True)

    def encode(
        self, batches: Iterable[Rows], file: str, first: tuple[int, dict[str, Any]], texts: bool
    ) -> Iterator[Encoded]:
        """The answers to batches of rows, in their order; few wait at a time.

        Raises:
            TemplateStopped: the template passed its limits, naming the row.
            FormatUnknown: the rows are of no format.
            NotSeparable: this tokenizer's texts must be encoded whole.
        """
        waiting: deque[Future[Encoded]] = deque()
        for number, rows in enumerate(batches):
            if len(self._started) < self.count and (number == 0 or number >= ALONE):
                self._start()
            waiting.append(self._threads.submit(self._ask, file, first, rows, texts))
            while len(waiting) > 2 * len(self._started):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def ask(self, file: str, rows: Rows, first: tuple[int, dict[str, Any]], texts: bool) -> Encoded:
        """The answer to one batch of rows, by one child that is kept. Raises as `encode` does."""
        with self._starting:
            if not self._started:
                self._start()
        return self._ask(file, first, rows, texts)

    def _start(self) -> None:
        child = kept_child() if not self._started else Child()
        self._started.append(child)
        self._free.put(child)

    def _ask(self, file: str, first: tuple[int, dict[str, Any]], rows: Rows, texts: bool) -> Encoded:
        child = self._free.get()
        try:
            arguments, name = self._arguments
            if child.prepared != name:
                child.ask("prepare", arguments=arguments)
                child.prepared = name
            values, blob = child.ask("encode", file=file, first=first, rows=rows, texts=texts)
        except ChildDied as died:
            at = "" if died.row == BETWEEN else place(file, rows[died.row][0])
            raise TemplateStopped(died.reason, at) from died
        finally:
            self._free.put(child)
        if values.get("by_words") is False:
            raise NotSeparable
        if "problem" in values:
            if values["stopped"]:
                at = "" if values["row"] == BETWEEN else place(file, rows[values["row"]][0])
                raise TemplateStopped(values["stopped"], at)
            raise FormatUnknown(*values["problem"])
        return Encoded(values, blob)
