"""Examples: tokenized rows as a sequence of Example, made when they are asked for from arrays mapped from disk.

A view holds 17 bytes an example: which store, which row of it, and which of the row's tokens. Holding out, dropping,
cutting and splitting make other views of the same stores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.render import Example
from topcoat.data.rows import Row, place
from topcoat.data.store import Store

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One file's rows: its store, its name for people, and its weight in a mixture (None: each row once an epoch).

    `answers` (rows, K) float64 is what the rows are labelled with, where documents and not tokens are what is learned.
    """

    store: Store
    file: str
    weight: float | None = None
    answers: NDArray[np.float64] | None = None


class Examples(Sequence[Example]):
    """Examples of some parts, in order."""

    def __init__(
        self,
        parts: Sequence[Part],
        part: NDArray[np.uint8],
        row: NDArray[np.int64],
        first: NDArray[np.int32],
        length: NDArray[np.int32],
    ) -> None:
        """Example i is tokens [first, first + length) of row `row[i]` of `parts[part[i]]`."""
        self.parts = list(parts)
        self.part, self.row, self.first, self.lengths = part, row, first, length

    @classmethod
    def whole(cls, parts: Sequence[Part]) -> Examples:
        """Every row of every part, whole."""
        counts = [part.store.n_rows for part in parts]
        lengths = [np.asarray(part.store.rows["length"]) for part in parts]
        return cls(
            parts,
            np.repeat(np.arange(len(parts), dtype=np.uint8), counts),
            np.concatenate([np.arange(n, dtype=np.int64) for n in counts]) if parts else np.zeros(0, np.int64),
            np.zeros(sum(counts), np.int32),
            np.concatenate(lengths) if parts else np.zeros(0, np.int32),
        )

    def take(self, chosen: NDArray[Any]) -> Examples:
        """The examples at these indices, or where this mask is true."""
        return Examples(self.parts, self.part[chosen], self.row[chosen], self.first[chosen], self.lengths[chosen])

    def __add__(self, other: Examples) -> Examples:
        """These examples, then the others."""
        return Examples(
            [*self.parts, *other.parts],
            np.concatenate([self.part, other.part + np.uint8(len(self.parts))]),
            np.concatenate([self.row, other.row]),
            np.concatenate([self.first, other.first]),
            np.concatenate([self.lengths, other.lengths]),
        )

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no example {index}")
        ids, trained = self.tokens(index)
        example = self._described(index)
        labels = np.where(trained, ids, IGNORE_INDEX)
        return replace(example, input_ids=ids.tolist(), labels=labels.tolist())

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def tokens(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Ids (T,) of an example, and which of them are labels (T,)."""
        store = self.parts[self.part[index]].store
        start = int(store.rows["start"][self.row[index]]) + int(self.first[index])
        stop = start + int(self.lengths[index])
        return store.ids(start, stop), store.trained(start, stop)

    def uncut(self, index: int) -> Example:
        """The whole row an example was made from."""
        chosen = self.take(np.array([index]))
        chosen.first = np.zeros(1, np.int32)
        chosen.lengths = chosen.column("length")
        return chosen[0]

    def place(self, index: int) -> str:
        """Where the row of an example stands, such as "train.jsonl line 4,812"."""
        part = self.parts[self.part[index]]
        return place(part.file, int(part.store.rows["line"][self.row[index]]))

    def column(self, name: str) -> NDArray[Any]:
        """A field of ROW for each example."""
        if len(self.parts) == 1:
            return np.asarray(self.parts[0].store.rows[name][self.row])
        found = np.zeros(len(self), self.parts[0].store.rows.dtype[name] if self.parts else np.int64)
        for number, part in enumerate(self.parts):
            mine = self.part == number
            found[mine] = part.store.rows[name][self.row[mine]]
        return found

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels: documents are learned, not tokens."""
        return any(part.answers is not None for part in self.parts)

    def answers(self, chosen: Index) -> NDArray[np.float64]:
        """What the examples at these indices are labelled with (N, K)."""
        width = next((part.answers.shape[1] for part in self.parts if part.answers is not None), 0)
        found = np.zeros((len(chosen), width))
        for number, part in enumerate(self.parts):
            mine = self.part[chosen] == number
            if part.answers is not None:
                found[mine] = part.answers[self.row[chosen][mine]]
        return found

    @cached_property
    def is_cut(self) -> NDArray[np.bool_]:
        """Whether an example is less than its row."""
        cut: NDArray[np.bool_] = self.lengths != self.column("length")
        return cut

    @cached_property
    def targets(self) -> NDArray[np.int32]:
        """Labels that count, of each example."""
        counts = self.column("targets").astype(np.int32)
        everything = counts == self.column("length") - 1  # of the row is trained, and so of every piece of it
        counts[everything] = np.maximum(self.lengths[everything] - 1, 0)
        for index in np.flatnonzero(self.is_cut & ~everything):
            counts[index] = int(self.tokens(int(index))[1][1:].sum())
        return counts

    def any_trained(self, wanted: set[int], flag: int) -> bool:
        """Whether some example has a label among `wanted`; `flag` is set of the rows that have one."""
        flagged = np.flatnonzero((self.column("flags") & flag) != 0)
        if not self.is_cut[flagged].all():
            return True
        return any(self._has_label(int(index), wanted) for index in flagged)

    def _has_label(self, index: int, wanted: set[int]) -> bool:
        ids, trained = self.tokens(index)
        return not wanted.isdisjoint(ids[trained].tolist())

    def _described(self, index: int) -> Example:
        """The example without its tokens."""
        part, row = self.parts[self.part[index]], int(self.row[index])
        where = Row({}, part.file, int(part.store.rows["line"][row]))
        text = None if self.lengths[index] != part.store.rows["length"][row] else part.store.text(row)
        if text is None:  # an answer that was cut is no reference for a metric any more
            return Example([], [], where)
        return Example([], [], where, text[0], text[1], int(part.store.rows["answer_start"][row]))

    @property
    def held_bytes(self) -> int:
        """Memory of the view itself. Pages of the stores come and go as the system has room."""
        return sum(array.nbytes for array in (self.part, self.row, self.first, self.lengths))

    def identity(self) -> list[str]:
        """What decides every token of these examples, as digests."""
        view = hashlib.sha256()
        for array in (self.part, self.row, self.first, self.lengths):
            view.update(np.ascontiguousarray(array).tobytes())
        for part in self.parts:
            if part.answers is not None:
                view.update(np.ascontiguousarray(part.answers).tobytes())
        return [*(part.store.identity for part in self.parts), view.hexdigest()]


def token_arrays(examples: Sequence[Example], index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Ids (T,) and which of them are labels (T,), of an example in a view or in a list."""
    if isinstance(examples, Examples):
        return examples.tokens(index)
    example = examples[index]
    return np.array(example.input_ids, np.int32), np.array(example.labels) != IGNORE_INDEX


class Places(Sequence[str]):
    """Where some examples stand, said when asked for: a million of them take no million texts."""

    def __init__(self, n: int, at: Callable[[int], str]) -> None:
        self._n, self._at = n, at

    @classmethod
    def none(cls) -> Places:
        """Nowhere."""
        return cls(0, str)

    @classmethod
    def of(cls, examples: Examples) -> Places:
        """The place of each of the examples."""
        return cls(len(examples), examples.place)

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(self._n)[index]]
        return self._at(range(self._n)[index])

    def __add__(self, other: Places) -> Places:
        n = len(self)
        return Places(n + len(other), lambda i: self._at(i) if i < n else other._at(i - n))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
