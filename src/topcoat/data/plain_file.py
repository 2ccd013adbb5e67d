"""The short way for a file of JSON Lines: its bytes -> arrays by several threads of this process, in their order.

Nearly all the time is spent in C, which runs beside other threads, and none of the template's program runs here: it is
rendered in the limited child, for a row in VERIFY_EVERY, and rows that are not plain are encoded there. There is no
process to start, and no row to hand over. Whatever is not as expected ends the short way (Unplain): the file is then
read in the long one, which says what is wrong with it.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from topcoat.data.columns import Columns
from topcoat.data.conversation import BadRow
from topcoat.data.layouts import Layouts
from topcoat.data.lines import MOST_ROW_BYTES, BadFile
from topcoat.data.opening import Reached, kind_of, opened
from topcoat.data.plain_lines import Encoded as Chunk
from topcoat.data.plain_lines import PlainLines, Unplain
from topcoat.data.render import Renderer
from topcoat.data.rows import Row
from topcoat.data.sandbox import TemplateStopped
from topcoat.data.store import ROW
from topcoat.data.straight import Straight, straight_of
from topcoat.data.words import NotSeparable, Words, words_of
from topcoat.data.workers import MOST_WORKERS, Encoded, FormatUnknown, Workers
from topcoat.kernels.native.library import threadless_library

CHUNK_BYTES = 2**19  # of lines, and what ends the last: little, for some wait in memory for each thread
KNOWN = 4  # tokenizers whose words are kept: what they cut is found out in a third of a second


@dataclass(frozen=True)
class PlainFile:
    """What decides the tokens of a file: see Preparation."""

    path: str
    renderer: Renderer
    spec: str
    form: str
    columns: Columns
    loss_on: str
    texts: bool

    def encode(self, first: tuple[int, dict[str, Any]], workers: Workers, reached: Reached) -> Iterator[Encoded]:
        """The rows of the file, some at a time; `first` is its first, which decides the format.

        Raises:
            Unplain: the file must be read in the long way.
        """
        kind, packed = kind_of(Path(self.path))
        library, straight = threadless_library(), _straight(self.renderer, self.spec, self.loss_on)
        if kind != ".jsonl" or library is None or straight is None:
            raise Unplain
        try:
            head = Row(self.columns.apply(first[1]), self.path, first[0])
        except BadRow as error:
            raise Unplain from error
        layouts = Layouts(straight, head, self.form, self.columns)
        count = max(1, min(MOST_WORKERS, os.cpu_count() or 1))
        free: SimpleQueue[PlainLines] = SimpleQueue()
        for number in range(count):
            own = straight.another() if number else straight
            free.put(PlainLines(library, own, layouts, self.renderer.stop_ids, self.texts))

        def encoded(chunk: bytes, line: int) -> Encoded:
            plain = free.get()
            try:
                found = plain.encode(chunk, line)
            finally:
                free.put(plain)
            long = workers.ask(self.path, found.rest, first, self.texts) if found.rest else None
            return _whole(found, long, layouts.form)

        try:
            with opened(Path(self.path), kind, packed, reached) as stream:
                yield from _in_order(encoded, _chunks(stream), count)
        except (BadFile, NotSeparable, TemplateStopped, FormatUnknown) as error:
            raise Unplain from error


def _in_order(encoded: Any, chunks: Iterator[tuple[bytes, int]], count: int) -> Iterator[Encoded]:
    """What becomes of each chunk; few wait at a time."""
    waiting: deque[Future[Encoded]] = deque()
    threads = ThreadPoolExecutor(count, "plain")
    try:
        for chunk, line in chunks:
            waiting.append(threads.submit(encoded, chunk, line))
            while len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _chunks(stream: Any) -> Iterator[tuple[bytes, int]]:
    """Whole lines, and which line of the file the first is. Raises Unplain for a line that is too long."""
    line = 1
    while data := stream.read(CHUNK_BYTES):
        rest = b"" if data.endswith(b"\n") else stream.readline(MOST_ROW_BYTES + 1)
        if len(rest) > MOST_ROW_BYTES:
            raise Unplain
        yield data + rest, line
        line += data.count(b"\n") + rest.count(b"\n")


def _whole(found: Chunk, long: Encoded | None, form: str) -> Encoded:
    """A chunk's answer, as a worker gives it; `long` is that to the rows that went the long way."""
    blobs, columns, values = found.blobs, found.columns, {"doubts": {}, "lost_reasoning_tokens": 0}
    if long is not None:
        if long.values["bad_count"] or (found.sizes["rows"] and long.values["form"] != form):
            raise Unplain
        form, columns = long.values["form"], columns | set(long.values["columns"])
        values = {name: long.values[name] for name in values}
        blobs = _merged(arrays_in(found.sizes, b"".join(blobs)), arrays_in(long.values, long.blob))
    names = ("rows", "ids", "trained", "texts")
    sizes = {name: len(blob) for name, blob in zip(names, blobs, strict=True)}
    values |= {"form": form, "columns": sorted(columns), "bad": [], "bad_count": 0, **sizes}
    return Encoded(values, b"".join(blobs))


Arrays = tuple[NDArray[Any], NDArray[np.int32], NDArray[np.bool_], bytes]


def arrays_in(sizes: dict[str, Any], blob: bytes) -> Arrays:
    """Rows (ROW), ids, which of them are labels, and texts, out of the bytes of an answer."""
    found, at = [], 0
    for name in ("rows", "ids", "trained", "texts"):
        found.append(blob[at : at + sizes[name]])
        at += sizes[name]
    rows, ids, trained, texts = found
    return np.frombuffer(rows, ROW), np.frombuffer(ids, np.int32), np.frombuffer(trained, np.bool_), texts


def _merged(one: Arrays, other: Arrays) -> list[bytes]:
    """The rows of both by their lines."""
    rows = np.concatenate([one[0], other[0]])
    rows["start"][len(one[0]) :] += len(one[1])
    rows["text"][len(one[0]) :] += len(one[3])
    rows = rows[np.argsort(rows["line"], kind="stable")]
    ids, trained, texts = np.concatenate([one[1], other[1]]), np.concatenate([one[2], other[2]]), one[3] + other[3]
    spans = [slice(a, a + n) for a, n in zip(rows["start"].tolist(), rows["length"].tolist(), strict=True)]
    said = [texts[a : a + n] for a, n in zip(rows["text"].tolist(), rows["text_size"].tolist(), strict=True)]
    rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
    rows["text"] = np.cumsum(rows["text_size"], dtype=np.int64) - rows["text_size"]
    none = np.zeros(0, np.int32)
    ids = np.concatenate([none, *(ids[span] for span in spans)])
    trained = np.concatenate([none.astype(np.bool_), *(trained[span] for span in spans)])
    return [rows.tobytes(), ids.tobytes(), trained.tobytes(), b"".join(said)]


def _straight(renderer: Renderer, spec: str, loss_on: str) -> Straight | None:
    words = _words(renderer.tokenizer.backend_tokenizer, spec)
    return straight_of(renderer, words.another() if words else None, loss_on)


_known: OrderedDict[str, Words | None] = OrderedDict()


def _words(tokenizer: Tokenizer, spec: str) -> Words | None:
    """words_of the tokenizer, which is asked once for the last few of them."""
    name = hashlib.sha256(spec.encode()).hexdigest()
    if name not in _known:
        _known[name] = words_of(tokenizer, spec)
        if len(_known) > KNOWN:
            _known.popitem(last=False)
    return _known[name]
