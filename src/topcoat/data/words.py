"""Words: tokenizing by remembering. Ids and ends of a text, put together from those of its words, each encoded once.

A byte-level BPE cuts a text before it merges, and never merges across a cut. Where every single space between two
characters begins a piece of its own, encode(a + " " + b) = encode(a) + encode(" " + b), so a text is the sequence of
its words, and most words were met before: a look-up takes the place of the merging. Whether a tokenizer cuts so is
found out on texts made to break it, and while it is used every batch's first text is encoded both ways.

Texts are bytes of UTF-8. All but one word in a hundred are so short that their bytes are the key they are looked up by
(`word_table.py`), so the words of a batch are cut, found and put together by operations on arrays.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tokenizers import Tokenizer

from topcoat.data.word_cuts import ASCII_SPACE, Bytes, Places, cut
from topcoat.data.word_table import PARTS, Keys, Numbers, WordTable

SHORT = 8 * (PARTS - 1)  # most bytes of a word that is a key
BLOCK_WORDS = 2**18  # looked up at once
TOGETHER = 256  # new words encoded as one text
MOST_WORDS = 600_000  # some 80 MB; then the memory is begun anew
MOST_TOKENS = 8_000_000  # of all words, another 64 MB
REMEMBERED_BYTES = 256  # what is longer is no word and does not come again
MASKS = np.array([[(1 << 8 * min(8, max(0, n - at))) - 1 for at in range(0, SHORT, 8)] for n in range(SHORT + 1)], "u8")
"""(length, part of a key) -> the bits of the part that are of the word."""

LETTERS = ("a", "Word", "don't", "I'M", "x1y2", "ÉCOLE", "über", "字", "漢字", "б", "ก็", "é", "\u0301", "ﬁ", "Å")
NUMBERS = ("1", "23", "4567")
SIGNS = (".", ",", "'s", "'ll", "'", '"', "!?", "...", "(", ")", "$", "_", "-", "=", "//", "#", "<", "|")
SPACES = (" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\x1f", "\u2028")
PIECES = (*LETTERS, *NUMBERS, *SIGNS, *SPACES, "👍🏽", "http://a.b/c?d=e")

_SPACES = frozenset(np.flatnonzero(ASCII_SPACE).tolist())
_SECOND = itemgetter(1)

Encoded = tuple[list[int], list[int]]
"""Ids of a text, and the end of each token, in characters."""
Word = tuple[bool, bytes]
"""Whether a word begins a segment, and its bytes; inner words begin with their space."""


class NotSeparable(Exception):
    """A text whose tokens are not those of its words."""


class Words:
    """Encodes as `tokenizer` does, nothing added in front or behind."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        """Id of each added token, by its text."""
        longest_first = sorted(self.added, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._forget()

    def _forget(self) -> None:
        self._table = WordTable()
        self._long: dict[Word, int] = {}
        self._start, self._count = (np.zeros(1024, np.int64) for _ in range(2))
        self._ids, self._ends = (np.zeros(4096, np.int32) for _ in range(2))
        self._used = 0
        for text, i in self.added.items():
            word = text.encode()
            if len(word) <= SHORT:
                buffer = np.frombuffer(word + bytes(SHORT), np.uint8)
                number = self._table.add(_keys(buffer, np.array([0]), np.array([len(word)]), np.array([True])))
            else:
                number = self._table.take(1)
                self._long[True, word] = int(number[0])
            self._remember(number, [i], [len(word)], np.array([1]))

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Ids and ends of each text."""
        parts = [[part.encode() for part in self.parts(text) if part] for text in texts]
        sizes = [0, *(len(part) for some in parts for part in some)]
        begins = np.cumsum([0, *(sum(map(len, some)) for some in parts)])
        data = b"".join(itertools.chain.from_iterable(parts))
        ids, ends, borders = self.arrays(data, np.cumsum(sizes), begins[:-1])
        found = []
        for text, begin, (a, b) in zip(texts, begins.tolist(), itertools.pairwise(borders.tolist()), strict=False):
            own = ends[a:b] - begin
            found.append((ids[a:b].tolist(), (own if text.isascii() else _characters(text)[own]).tolist()))
        return found

    def arrays(self, data: bytes, edges: Places, begins: Places) -> tuple[NDArray[np.int32], Places, Places]:
        """Ids (T,) of texts side by side in `data`, and the end of each token, in bytes of `data` (T,).

        No word spans one of `edges`: that is where an added token begins or ends, or a text does. Then the first token
        of the texts that begin at `begins`, with T behind them.
        """
        if self._table.n > MOST_WORDS or self._used > MOST_TOKENS:
            self._forget()
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

    def parts(self, text: str) -> list[str]:
        """The text between added tokens, and these, in turns."""
        return self._special.split(text)

    def may_open(self, text: str) -> bool:
        """Whether an added token may begin in `text` and end behind it."""
        return any(text.endswith(token[:n]) for token in self.added for n in range(1, len(token)))

    def check(self, text: str, encoded: Encoded) -> None:
        """Raises NotSeparable if `encoded` is not what the tokenizer makes of `text`."""
        (found,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        if (found.ids, [end for _, end in found.offsets]) != encoded:
            raise NotSeparable(text)

    def check_bytes(self, text: str, ids: NDArray[np.int32], ends: Places) -> None:
        """Raises NotSeparable if these are not the tokenizer's ids of `text`, and their ends in bytes."""
        ((whole, ends_of_whole),) = self._encoded([text])
        if whole != ids.tolist() or ends_of_whole.tolist() != ends.tolist():
            raise NotSeparable(text)

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
        """Encode words and remember them under these numbers. Raises NotSeparable where a token spans two."""
        plain = np.array([not first and _ends_in_a_sign(word) for first, word in words])
        together = np.flatnonzero(plain)
        for some in np.split(together, range(TOGETHER, len(together), TOGETHER)):
            if len(some):
                self._learn_together([words[i][1] for i in some.tolist()], numbers[some])
        rest = np.flatnonzero(~plain)
        if len(rest):
            found = self._encoded([words[i][1].decode() for i in rest.tolist()])
            counts = np.array([len(ids) for ids, _ in found])
            ids = list(itertools.chain.from_iterable(ids for ids, _ in found))
            self._remember(numbers[rest], ids, np.concatenate([ends for _, ends in found]), counts)

    def _learn_together(self, words: list[bytes], numbers: Numbers) -> None:
        """Encode words as one text, which costs a fifth of one by one."""
        text = b"".join(words).decode()
        ((ids, ends),) = self._encoded([text])
        borders = np.cumsum([0, *map(len, words)])
        edges = np.searchsorted(ends, borders, "right")
        if edges[0] or not (edges[1:] > edges[:-1]).all() or (ends[edges[1:] - 1] != borders[1:]).any():
            raise NotSeparable(text)
        counts = np.diff(edges)
        self._remember(numbers, ids, ends - np.repeat(borders[:-1], counts), counts)

    def _encoded(self, texts: list[str]) -> list[tuple[list[int], Places]]:
        """Ids of each text, and the end of each token, in bytes."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False) if texts else []
        pairs = []
        for text, encoding in zip(texts, found, strict=True):
            ends = np.fromiter(map(_SECOND, encoding.offsets), np.int64, len(encoding))
            pairs.append((encoding.ids, ends if text.isascii() else _bytes(text)[ends]))
        return pairs

    def _remember(self, numbers: Numbers, ids: Any, ends: Any, counts: Places) -> None:
        """Words under their numbers, which follow each other, with their tokens side by side, `counts` of them each."""
        used = self._used
        self._used = used + len(ids)
        while self._table.n > len(self._start):
            self._start, self._count = _doubled(self._start), _doubled(self._count)
        while self._used > len(self._ids):
            self._ids, self._ends = _doubled(self._ids), _doubled(self._ends)
        self._ids[used : self._used], self._ends[used : self._used] = ids, ends
        self._count[numbers], self._start[numbers] = counts, used + np.cumsum(counts) - counts


def _ends_in_a_sign(word: bytes) -> bool:
    """Whether the last character is none of white space: another word may stand behind."""
    return word[-1] not in _SPACES if word[-1] < 0x80 else not word.decode()[-1].isspace()


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


def _bytes(text: str) -> Places:
    """(n,) -> how many bytes the first n characters take."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))])


def _characters(text: str) -> Places:
    """(n,) -> how many characters the first n bytes belong to."""
    data = np.frombuffer(text.encode(), np.uint8)
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])


def words_of(tokenizer: Tokenizer) -> Words | None:
    """A Words that encodes as `tokenizer` does; None for a tokenizer that does not cut so, or is of another kind."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    model, normalizer = spec["model"], spec["normalizer"]
    plain = model["type"] == "BPE" and not model.get("dropout") and not model.get("continuing_subword_prefix")
    if not plain or spec["truncation"] or spec["padding"] or (normalizer and normalizer["type"] != "NFC"):
        return None
    if any(token[flag] for token in spec["added_tokens"] for flag in ("lstrip", "rstrip", "single_word")):
        return None
    words = Words(tokenizer)
    texts = _texts(random.Random(0), [token["content"] for token in spec["added_tokens"]][:8])
    try:
        found = words.encode(texts)
    except NotSeparable:
        return None
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    whole = [(one.ids, [end for _, end in one.offsets]) for one in expected]
    return words if found == whole else None


def _texts(draw: random.Random, added: list[str]) -> list[str]:
    """Texts of all that tokenizers cut at, in every order."""
    texts = [f"{a} {b}" for a in PIECES for b in PIECES if not (a + b).isspace()]
    texts += ["".join(draw.choice((*PIECES, " ", " ", *added)) for _ in range(40)) for _ in range(200)]
    return texts


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)])
