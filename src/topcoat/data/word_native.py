"""NativeMemory: what a WordMemory does, in one pass of C (`kernels/native/words.c`), which also merges new words.

Each thread has a memory of its own; the rules of merging never change and are shared by all that are made of one.
"""

from __future__ import annotations

import weakref
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from topcoat.data.word_cuts import Places
from topcoat.data.word_memory import Speller, Word
from topcoat.data.word_rules import PADDING, Rules
from topcoat.kernels.native.library import Library


class NativeRules:
    """Rules of merging as the library holds them."""

    def __init__(self, library: Library, rules: Rules) -> None:
        whole = rules.whole or []
        borders = np.array([0, *accumulate(map(len, whole))], np.int64)
        text = np.frombuffer(b"".join(whole) + PADDING, np.uint8)
        self.address = _there(
            library.words_rules_new(
                rules.kind,
                rules.digits,
                rules.kinds.ctypes.data,
                rules.byte_ids.ctypes.data,
                len(rules.merges),
                np.ascontiguousarray(rules.merges).ctypes.data,
                len(whole),
                0 if rules.whole is None else text.ctypes.data,
                borders.ctypes.data,
                rules.whole_ids.ctypes.data,
            )
        )
        weakref.finalize(self, library.words_rules_free, self.address)


class NativeMemory:
    """Words and their tokens; `spell` tells those of words that the rules, if any, do not; `added` are words too."""

    def __init__(self, library: Library, rules: NativeRules | None, spell: Speller, added: dict[bytes, int]) -> None:
        self._library, self._rules, self._spell = library, rules, spell
        self._memory = _there(library.words_new(rules.address if rules else 0))
        weakref.finalize(self, library.words_free, self._memory)
        for word, i in added.items():
            padded = np.frombuffer(word + PADDING, np.uint8)
            _done(library.words_add(self._memory, padded.ctypes.data, len(word), i))

    @property
    def held(self) -> tuple[int, int]:
        """Words, and tokens of those that have many."""
        found = np.zeros(2, np.int64)
        self._library.words_held(self._memory, found.ctypes.data)
        return int(found[0]), int(found[1])

    def arrays(self, data: bytes, edges: Places, begins: Places) -> tuple[NDArray[np.int32], Places, Places]:
        """As Words.arrays."""
        size = len(data)
        marks = np.zeros(size + 1, np.uint8)
        marks[edges] = 1
        return self.marked(np.frombuffer(data + PADDING, np.uint8), size, marks, begins)

    def marked(
        self, data: NDArray[np.uint8], size: int, marks: NDArray[np.uint8], begins: Places
    ) -> tuple[NDArray[np.int32], Places, Places]:
        """The same for the first `size` bytes of `data`, which goes on for those of PADDING; `marks` are at edges."""
        library, memory = self._library, self._memory
        most = int(np.count_nonzero(data[:size] == ord(" ")) + np.count_nonzero(marks)) + 1  # words
        starts, numbers = np.empty(most, np.int64), np.empty(most, np.int32)
        n = _done(
            library.words_find(
                memory, data.ctypes.data, size, marks.ctypes.data, starts.ctypes.data, numbers.ctypes.data
            )
        )
        asked = np.empty((library.words_asked(memory, 0), 4), np.int64)
        if len(asked):
            library.words_asked(memory, asked.ctypes.data)
            self._tell(data, asked)
        total = library.words_count(memory, n, numbers.ctypes.data)
        ids, ends = np.empty(total, np.int32), np.empty(total, np.int64)
        borders = np.full(len(begins) + 1, total, np.int64)
        begins = np.ascontiguousarray(begins, np.int64)
        library.words_write(
            memory, n, starts.ctypes.data, numbers.ctypes.data, ids.ctypes.data, ends.ctypes.data,
            len(begins), begins.ctypes.data, borders.ctypes.data,
        )  # fmt: skip
        return ids, ends, borders

    def _tell(self, data: NDArray[np.uint8], asked: Places) -> None:
        words: list[Word] = [(bool(first), data[at : at + size].tobytes()) for _, at, size, first in asked.tolist()]
        for some, ids, ends, counts in self._spell(words):
            numbers = np.ascontiguousarray(asked[some, 0])
            ids, ends = np.asarray(ids, np.int32), np.asarray(ends, np.int32)
            counts = np.asarray(counts, np.int64)
            told = (numbers.ctypes.data, counts.ctypes.data, ids.ctypes.data, ends.ctypes.data)
            _done(self._library.words_tell(self._memory, len(numbers), *told))


def _there(address: int | None) -> int:
    """Raises MemoryError for a NULL."""
    if not address:
        raise MemoryError("no memory for remembered words")
    return address


def _done(result: int) -> int:
    if result < 0:
        raise MemoryError("no memory for remembered words")
    return result
