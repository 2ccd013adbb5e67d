"""Lines of JSON Lines as arrays: where the texts of each row stand, read in one pass of C (`kernels/native/rows.c`).

A line's layout is its JSON without blanks, a byte in place of each text (TEXT) and of each number of the row (NUMBER).
Names stay, and what a turn's "role" or "from" says: rows of one layout are alike but for what their texts say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.data.word_rules import PADDING
from topcoat.kernels.native.library import Library

PLAIN, BLANK = 1, 2  # kinds of lines in rows.c; 0 is left alone
TEXT, NUMBER = b"\x01", b"\x02"
_HEAD_BYTES = 63  # of a text to be wary of

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LineArrays:
    """N lines with S texts in all. The texts of line i are those from text_ends[i - 1] to text_ends[i]."""

    lines: Places
    """Where each begins, and the bytes of all (N + 1,)."""
    kinds: NDArray[np.uint8]
    layouts: list[bytes]
    """Of each line, empty where it is not plain."""
    first_texts: Places
    """(N,)"""
    texts: NDArray[np.uint8]
    """The bytes of all texts in UTF-8, as they are meant."""
    starts: Places
    """Where each begins in `texts` (S,)."""
    sizes: Places
    left: NDArray[np.int32]
    """White space in front, in bytes (S,); all of it where there is nothing else."""
    right: NDArray[np.int32]
    """White space behind."""
    wary: NDArray[np.bool_]
    """Whether something to be wary of may stand in it (S,)."""

    def text(self, number: int) -> str:
        """One of the texts."""
        return self.texts[self.starts[number] : self.starts[number] + self.sizes[number]].tobytes().decode()


class LineReader:
    """Reads chunks of lines, wary of some texts."""

    def __init__(self, library: Library, wary_of: Sequence[str]) -> None:
        self._library = library
        heads = sorted({text.encode()[:_HEAD_BYTES] for text in wary_of if text})
        self._firsts = np.zeros(256, np.uint8)
        self._firsts[[head[0] for head in heads]] = 1
        rows = [[len(head), *head.ljust(_HEAD_BYTES, b"\0")] for head in heads]
        self._heads = np.array(rows, np.uint8).reshape(-1, _HEAD_BYTES + 1)

    def read(self, chunk: bytes) -> LineArrays:
        """Whole lines; the last need not end in a line feed."""
        size, data = len(chunk), np.frombuffer(chunk, np.uint8)
        n = chunk.count(b"\n") + 1
        lines, layout_ends, text_ends = np.empty(n + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        kinds, layouts = np.empty(n, np.uint8), np.empty(size + len(PADDING), np.uint8)
        texts = np.empty(size + len(PADDING), np.uint8)
        most = chunk.count(b'"') // 2 + 1  # a text takes two
        starts, sizes, wary = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
        left, right = np.empty(most, np.int32), np.empty(most, np.int32)
        n = self._library.rows_read(
            data.ctypes.data,
            size,
            self._firsts.ctypes.data,
            len(self._heads),
            self._heads.ctypes.data,
            *_addresses(lines, kinds, layouts, layout_ends, text_ends, texts, starts, sizes, left, right, wary),
        )
        ends = layout_ends[:n].tolist()
        whole = layouts[: ends[-1] if n else 0].tobytes()
        found = int(text_ends[n - 1]) if n else 0
        used = int(starts[found - 1] + sizes[found - 1]) if found else 0
        return LineArrays(
            lines[: n + 1],
            kinds[:n],
            [whole[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if n else [],
            np.concatenate([[0], text_ends[: n - 1]])[:n],
            texts[:used],
            starts[:found],
            sizes[:found],
            left[:found],
            right[:found],
            wary[:found],
        )


def joined(
    library: Library, source: NDArray[np.uint8], starts: Places, sizes: Places, quoted: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], Places]:
    """Pieces of `source` (P,) side by side, and where each ends (P,). `quoted` ones as inside a string of JSON."""
    ends = np.empty(len(starts), np.int64)
    room = int(sizes.sum()) * (1 if quoted is None else 6)  # of which only the pages that are written are taken
    made = np.empty(room + len(PADDING), np.uint8)
    size = library.rows_join(
        source.ctypes.data,
        len(starts),
        *_addresses(starts, sizes),
        None if quoted is None else quoted.ctypes.data,
        *_addresses(made, ends),
    )
    return made[:size], ends


def digests(library: Library, data: NDArray[Any], borders: Places) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each stretch of `data` between borders (N + 1,), in bytes."""
    found = np.empty(len(borders) - 1, np.uint64)
    borders = np.ascontiguousarray(borders, np.int64)
    library.rows_digests(data.ctypes.data, len(found), *_addresses(borders, found))
    return found


def _addresses(*arrays: NDArray[Any]) -> list[int]:
    return [array.ctypes.data for array in arrays]
