"""WordMemory: words that were met and their tokens, found and put together by operations on arrays.

This is the portable definition; where the compiled library is, `word_native.py` does the same in one pass. All but one
word in a hundred are so short that their bytes are the key they are looked up by (`word_table.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from topcoat.data.word_cuts import Bytes, Places, cut
from topcoat.data.word_table import PARTS, Keys, Numbers, WordTable

SHORT = 8 * (PARTS - 1)  # most bytes of a word that is a key
BLOCK_WORDS = 2**18  # looked up at once
REMEMBERED_BYTES = 256  # what is longer is no word and does not come again
MASKS = np.array([[(1 << 8 * min(8, max(0, n - at))) - 1 for at in range(0, SHORT, 8)] for n in range(SHORT + 1)], "u8")
"""(length, part of a key) -> the bits of the part that are of the word."""

Word = tuple[bool, bytes]
"""Whether a word begins a segment, and its bytes; inner words begin with their space."""
Spelled = tuple[Places, Any, Any, Places]
"""Some of the words that were asked for, by their numbers; their tokens side by side, with ends in bytes; how many each
has."""
Speller = Callable[[Sequence[Word]], Iterable[Spelled]]


class WordMemory:
    """Words and their tokens; `spell` tells those of words that were not met before, `added` are words as well."""

    def __init__(self, spell: Speller, added: dict[bytes, int]) -> None:
        self._spell = spell
        self._table = WordTable()
        self._long: dict[Word, int] = {}
        self._start, self._count = (np.zeros(1024, np.int64) for _ in range(2))
        self._ids, self._ends = (np.zeros(4096, np.int32) for _ in range(2))
        self._used = 0
        for word, i in added.items():
            if len(word) <= SHORT:
                buffer = np.frombuffer(word + bytes(SHORT), np.uint8)
                number = self._table.add(_keys(buffer, np.array([0]), np.array([len(word)]), np.array([True])))
            else:
                number = self._table.take(1)
                self._long[True, word] = int(number[0])
            self._remember(number, [i], [len(word)], np.array([1]))

    @property
    def held(self) -> tuple[int, int]:
        """Words, and tokens of all."""
        return self._table.n, self._used

    def arrays(self, data: bytes, edges: Places, begins: Places) -> tuple[NDArray[np.int32], Places, Places]:
        """As Words.arrays."""
        buffer = np.frombuffer(data + bytes(SHORT), np.uint8)
        starts, is_first = cut(buffer, len(data), edges)
        lengths = np.diff(starts, append=len(data))
        ids, ends, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
        for first in range(0, len(starts), BLOCK_WORDS):  # a text of 50 MB must not take a gigabyte
            block = slice(first, first + BLOCK_WORDS)
            numbers = self._find(data, buffer, starts[block], lengths[block], is_first[block])
            counts.append(self._count[numbers])
            before = np.cumsum(counts[-1]) - counts[-1]
            at = np.arange(counts[-1].sum()) + np.repeat(self._start[numbers] - before, counts[-1])
            ids.append(self._ids[at])
            ends.append(self._ends[at] + np.repeat(starts[block], counts[-1]))
        until = np.cumsum(np.concatenate(counts))  # tokens before each word, and all
        borders = np.append(until[np.searchsorted(starts, begins)], until[-1])
        return np.concatenate(ids), np.concatenate(ends), borders

    def _find(
        self, data: bytes, buffer: Bytes, starts: Places, lengths: Places, is_first: NDArray[np.bool_]
    ) -> Numbers:
        """The number of each word; those that were not met before are learnt."""

        def words(chosen: Places) -> list[Word]:
            columns = (array[chosen].tolist() for array in (is_first, starts, lengths))
            return [(first, data[start : start + size]) for first, start, size in zip(*columns, strict=True)]

        keys = _keys(buffer, starts, lengths, is_first)
        numbers = self._table.find(keys)
        is_long = lengths > SHORT
        new = np.flatnonzero((numbers < 0) & ~is_long)
        if len(new):
            distinct, one_of_each, which = _distinct(keys[new])
            taken = self._table.add(distinct)
            self._learn(words(new[one_of_each]), taken)
            numbers[new] = taken[which]
        long = np.flatnonzero(is_long)
        found = words(long)
        unknown = list(dict.fromkeys(word for word in found if word not in self._long))
        if unknown:
            taken = self._table.take(len(unknown))
            self._learn(unknown, taken)
            self._long.update(zip(unknown, taken.tolist(), strict=True))
        numbers[long] = [self._long[word] for word in found]
        for word in unknown:
            if len(word[1]) > REMEMBERED_BYTES:
                del self._long[word]
        return numbers

    def _learn(self, words: Sequence[Word], numbers: Numbers) -> None:
        for some, ids, ends, counts in self._spell(words):
            self._remember(numbers[some], ids, ends, counts)

    def _remember(self, numbers: Numbers, ids: Any, ends: Any, counts: Places) -> None:
        """Words under their numbers, with their tokens side by side, `counts` of them each."""
        used = self._used
        self._used = used + len(ids)
        while self._table.n > len(self._start):
            self._start, self._count = _doubled(self._start), _doubled(self._count)
        while self._used > len(self._ids):
            self._ids, self._ends = _doubled(self._ids), _doubled(self._ends)
        self._ids[used : self._used], self._ends[used : self._used] = ids, ends
        self._count[numbers], self._start[numbers] = counts, used + np.cumsum(counts) - counts


def _keys(buffer: Bytes, starts: Places, lengths: Places, is_first: NDArray[np.bool_]) -> Keys:
    """The key of each word: its bytes with zeros behind, then its length and whether it is the first of a segment.

    A word of over SHORT bytes gets a key that no word has.
    """
    keys = np.empty((len(starts), PARTS), np.uint64)
    window = sliding_window_view(buffer, SHORT)[starts].view("<u8")
    np.bitwise_and(window, MASKS[np.minimum(lengths, SHORT)], out=keys[:, :-1])
    keys[:, -1] = np.where(lengths > SHORT, 255, lengths) + (is_first.astype(np.int64) << 8)
    return keys


def _distinct(keys: Keys) -> tuple[Keys, Places, Places]:
    """The different keys, the place of one of each, and which of them each key is."""
    whole = np.ascontiguousarray(keys).view(f"V{8 * PARTS}").ravel()
    _, one_of_each, which = np.unique(whole, return_index=True, return_inverse=True)
    return keys[one_of_each], one_of_each, which


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)])
