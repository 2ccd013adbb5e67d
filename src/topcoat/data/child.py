"""Child: a process that renders foreign templates and encodes rows, so that what a template does stays in it.

It reads requests from its standard input until that ends, and answers each: a request is a pickle (from the parent, who
is trusted), an answer is JSON and raw bytes (from a process in which a foreign template ran, which is not). Interrupts
are the parent's to handle: the child ignores them and leaves when the parent closes the pipe or dies.

Importing this module imports no torch: a child takes some 100 MB.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

HEADER = struct.Struct("<qq")
BETWEEN = -1  # no row is being rendered


class Answer(NamedTuple):
    """What comes back: plain values, and the bytes of arrays."""

    values: dict[str, Any]
    blobs: Sequence[bytes | memoryview] = ()


class Progress:
    """The number of the row in hand, in memory shared with the parent: it outlives this process."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self.set(BETWEEN)

    def set(self, row: int) -> None:
        """Row `row` of the request is in hand."""
        struct.pack_into("<q", self._memory, 0, row)

    def get(self) -> int:
        """The row that was last in hand, or BETWEEN."""
        return int(struct.unpack_from("<q", self._memory, 0)[0])


def main(progress_descriptor: int) -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever the interpreter is doing
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a print in some library is no answer
    time.localtime()  # reads the time zone now: inside the limits no file can be opened
    from topcoat.data.limits import leave_the_network

    leave_the_network()
    from topcoat.data.sandbox import render_here, stay_here

    stay_here()

    progress = Progress(progress_descriptor)
    state: dict[str, Any] = {}

    def prepare(arguments: bytes) -> Answer:
        from topcoat.data.encode import Encoder

        state["encoder"] = Encoder(**pickle.loads(arguments))
        return Answer({})

    def encode(**rows: Any) -> Answer:
        answer: Answer = state["encoder"].encode(progress=progress, **rows)
        return answer

    gc.disable()  # a request makes many thousand objects and no cycle to speak of: looked for behind each one
    gc.freeze()
    operations: dict[str, Callable[..., Answer]] = {"render": render_here, "prepare": prepare, "encode": encode}
    while True:
        request = read_frame(sys.stdin.buffer)
        if request is None:
            return
        name, arguments = pickle.loads(request)
        write_answer(answers, operations[name](**arguments))
        gc.collect()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The bytes of one request; None where the stream ends."""
    header = stream.read(8)
    if len(header) < 8:
        return None
    size = int.from_bytes(header, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """One request."""
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def write_answer(stream: IO[bytes], answer: Answer) -> None:
    """One answer."""
    values = json.dumps(answer.values).encode()
    stream.write(HEADER.pack(len(values), sum(memoryview(blob).nbytes for blob in answer.blobs)))
    stream.write(values)
    for blob in answer.blobs:
        stream.write(blob)
    stream.flush()


def read_answer(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """One answer; None where the stream ends before it is whole, or where it is none."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    sizes = HEADER.unpack(header)
    values, blob = (stream.read(size) for size in sizes)
    if (len(values), len(blob)) != sizes:
        return None
    return json.loads(values), blob
