"""Plain lines: chunks of JSON Lines -> tokens and labels, rows that are alike taken together from the bytes on.

C reads the lines (`line_arrays.py`), what they are is found out once for each layout (`layouts.py`), and the texts of a
chunk are put between the literals of the template and encoded side by side (`labelled.py`). No row becomes a Python
object. What is not plain goes the long way and decides: a row whose texts may hold special tokens, is blank or of
another kind is handed back with its values, and where that is no row either, Unplain ends the short way for the file.
The first row of each shape and every 256th are rendered as well, as in `straight.py`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.data.encode import Tokens, arrays_of
from topcoat.data.labelled import Group, Places, Straightened
from topcoat.data.layouts import Layout, Layouts, TooMany
from topcoat.data.line_arrays import BLANK, LineArrays, LineReader, digests, joined
from topcoat.data.lines import deep_row
from topcoat.data.straight import Straight
from topcoat.json_files import quick_object
from topcoat.kernels.native.library import Library

MOST_LEFT = 0.5  # of the rows of a chunk: where more go the long way, all do
MOST_BLANK = 1000  # blank lines of a chunk: more may be what a reader refuses


class Unplain(Exception):
    """A file that must be read in the long way."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk: its plain rows as arrays (those of `arrays_of`, and how many bytes each has) with their columns, and the
    others, (line, values) each."""

    blobs: list[bytes]
    sizes: dict[str, int]
    columns: set[str]
    rest: list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Some:
    """Rows of one layout: their lines (n,), and where their turns stand in the texts (n, turns)."""

    layout: Layout
    lines: Places
    texts: Places


class PlainLines:
    """Encodes chunks of lines by one `straight`. One thread uses it."""

    def __init__(self, library: Library, straight: Straight, layouts: Layouts, stops: set[int], texts: bool) -> None:
        """`texts` keeps what a metric may ask of a row."""
        self._library, self._straight, self._layouts, self._texts = library, straight, layouts, texts
        self._reader = LineReader(library, straight.wary_of)
        self._stops = np.array(sorted(stops), np.int32)

    def encode(self, chunk: bytes, line: int) -> Encoded:
        """The rows of whole lines, of which the first is the file's `line`.

        Raises:
            Unplain: a line may be no row, or few are plain.
            NotSeparable: a rendering or an encoding was not what was put together.
        """
        read = self._reader.read(chunk)
        some = self._plain(read)
        found = self._encoded(read, some) if some else None
        taken = np.zeros(len(read.kinds), np.bool_)
        if found:
            taken[found.rows] = True
        left = np.flatnonzero(~taken & (read.kinds != BLANK))
        if len(left) > MOST_LEFT * len(read.kinds) or (read.kinds == BLANK).sum() > MOST_BLANK:
            raise Unplain
        rest = [(line + n, _row(chunk[read.lines[n] : read.lines[n + 1]])) for n in left.tolist()]
        columns = set().union(*(one.layout.columns for one in some))
        if not found:
            return Encoded([b""] * 4, dict.fromkeys(("rows", "ids", "trained", "texts"), 0), columns, rest)
        return Encoded(*self._arrays(read, some, found, line), columns, rest)

    def _plain(self, read: LineArrays) -> list[_Some]:
        """The rows that are of a known layout, with no text that is blank or may hold what is to be wary of."""
        by_layout: dict[bytes, list[int]] = defaultdict(list)
        for number, name in enumerate(read.layouts):
            by_layout[name].append(number)
        by_layout.pop(b"", None)
        odd = read.wary | (read.left == read.sizes)
        found = []
        try:
            for name, numbers in by_layout.items():
                layout = self._layouts.of(name)
                if layout is not None:
                    lines = np.array(numbers)
                    texts = read.first_texts[lines][:, None] + layout.turns
                    good = ~odd[texts].any(axis=1)
                    if good.any():
                        found.append(_Some(layout, lines[good], texts[good]))
        except TooMany as error:
            raise Unplain from error
        return found

    def _encoded(self, read: LineArrays, some: list[_Some]) -> Straightened:
        rows = np.sort(np.concatenate([one.lines for one in some]))
        groups, pieces = [], []
        for one in some:
            shape = one.layout.shape
            starts, sizes = read.starts[one.texts], read.sizes[one.texts]
            for turn, strip in enumerate(shape.strips):
                left = read.left[one.texts[:, turn]] if strip in (str.lstrip, str.strip) else 0
                right = read.right[one.texts[:, turn]] if strip in (str.rstrip, str.strip) else 0
                starts[:, turn] += left
                sizes[:, turn] -= left + right
            numbers = np.searchsorted(rows, one.lines)
            groups.append(Group(shape, numbers, sizes, np.ones(len(numbers), np.bool_)))
            pieces.append((numbers, [literal.encode() for literal in shape.literals], starts, sizes))
        data, borders = self._joined(read, pieces, len(rows), quoted=False)
        whole = data.tobytes()
        for one, group in zip(some, groups, strict=True):
            for at in one.layout.shape.to_verify(len(one.lines)):
                n = group.numbers[at]
                self._verify(read, one.layout, one.texts[at], whole[borders[n] : borders[n + 1]])
        return self._straight.labeller.labelled(rows.tolist(), groups, whole)

    def _verify(self, read: LineArrays, layout: Layout, texts: Places, text: bytes) -> None:
        """Raises NotSeparable where the template makes another text than `text` of a row's `texts` (turns,)."""
        messages = [
            {"role": role, "content": read.texts[read.starts[n] : read.starts[n] + read.sizes[n]].tobytes().decode()}
            for role, n in zip(layout.shape.roles, texts.tolist(), strict=True)
        ]
        self._straight.verify(messages, text.decode())

    def _arrays(
        self, read: LineArrays, some: list[_Some], found: Straightened, line: int
    ) -> tuple[list[bytes], dict[str, int]]:
        rows = np.array(found.rows)
        tokens = Tokens(np.diff(found.borders), found.ids, found.trained, found.answer_starts)
        said, ends = self._said(read, some, rows, asked=False)
        contents = digests(self._library, said, ends)
        asked = [b""] * len(rows)
        if self._texts:
            said, ends = self._said(read, some, rows, asked=True)
            whole, borders = said.tobytes(), ends.tolist()
            asked = [whole[a:b] for a, b in itertools.pairwise(borders)]
        own = digests(self._library, found.ids, 4 * tokens.borders)
        flags = np.zeros(len(rows), np.uint32)
        return arrays_of(tokens, line + rows, (contents, own), flags, self._stops, asked)

    def _said(self, read: LineArrays, some: list[_Some], rows: Places, asked: bool) -> tuple[NDArray[np.uint8], Places]:
        """JSON of what the rows say, or of what a metric may ask of them, side by side, and their borders."""
        pieces = []
        for one in some:
            literals = one.layout.asked if asked else one.layout.said
            kept = np.isin(one.lines, rows)
            texts = one.texts[kept][:, : len(literals) - 1]
            numbers = np.searchsorted(rows, one.lines[kept])
            pieces.append((numbers, literals, read.starts[texts], read.sizes[texts]))
        return self._joined(read, pieces, len(rows), quoted=True)

    def _joined(
        self, read: LineArrays, pieces: list[tuple[Places, list[bytes], Places, Places]], n: int, quoted: bool
    ) -> tuple[NDArray[np.uint8], Places]:
        """n texts side by side, and their borders (n + 1,).

        Each of `pieces` is for some of the texts, by their numbers (m,): literals and, between them, where contents
        begin and their sizes (m, turns).
        """
        counts = np.zeros(n, np.int64)
        for numbers, literals, _, _ in pieces:
            counts[numbers] = 2 * len(literals) - 1
        first = np.cumsum(counts) - counts
        starts, sizes = np.empty(counts.sum(), np.int64), np.empty(counts.sum(), np.int64)
        inside = np.zeros(len(starts), np.bool_)
        source, used = [read.texts], len(read.texts)
        for numbers, literals, content_starts, content_sizes in pieces:
            source.append(np.frombuffer(b"".join(literals), np.uint8))
            lengths = np.array([len(literal) for literal in literals])
            at = first[numbers][:, None] + np.arange(2 * len(literals) - 1)
            starts[at[:, ::2]], sizes[at[:, ::2]] = used + np.cumsum(lengths) - lengths, lengths
            starts[at[:, 1::2]], sizes[at[:, 1::2]] = content_starts, content_sizes
            inside[at[:, 1::2]] = True
            used += len(source[-1])
        made, ends = joined(self._library, np.concatenate(source), starts, sizes, inside if quoted else None)
        return made, np.concatenate([[0], ends[first + counts - 1]])


def _row(line: bytes) -> dict[str, Any]:
    """The values of a row. Raises Unplain for a line that may be none."""
    values = quick_object(line)
    if values is None or deep_row(0, values) is not None:
        raise Unplain
    return values
