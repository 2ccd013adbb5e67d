"""Words: tokenizing by remembering. Ids and ends of a text, put together from those of its words, each encoded once.

A byte-level BPE cuts a text before it merges, and never merges across a cut. Where every single space between two
characters begins a piece of its own, encode(a + " " + b) = encode(a) + encode(" " + b), so a text is the sequence of
its words, and most words were met before: a look-up takes the place of the merging. Whether a tokenizer cuts so is
found out on texts made to break it, and while it is used every batch's first text is encoded both ways.

Texts are bytes of UTF-8. The words of a batch are cut, found and put together in C (`word_native.py`), which merges new
ones by itself where it was found out that it can, or else by operations on arrays (`word_memory.py`).
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from topcoat.data.word_cuts import ASCII_SPACE, Places
from topcoat.data.word_memory import Spelled, Word, WordMemory
from topcoat.data.word_native import NativeMemory, NativeRules
from topcoat.data.word_rules import rules_of
from topcoat.kernels.native.library import Library, threadless_library

TOGETHER = 256  # new words encoded as one text
MOST_WORDS = 600_000  # some 80 MB; then the memory is begun anew
MOST_TOKENS = 8_000_000  # of all words, another 64 MB

LETTERS = ("a", "Word", "don't", "I'M", "x1y2", "ÉCOLE", "über", "字", "漢字", "б", "ก็", "é", "\u0301", "ﬁ", "Å")
NUMBERS = ("1", "23", "4567")
SIGNS = (".", ",", "'s", "'ll", "'", '"', "!?", "...", "(", ")", "$", "_", "-", "=", "//", "#", "<", "|")
SPACES = (" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\x1f", "\u2028")
PIECES = (*LETTERS, *NUMBERS, *SIGNS, *SPACES, "👍🏽", "http://a.b/c?d=e")

_SPACES = frozenset(np.flatnonzero(ASCII_SPACE).tolist())
_SECOND = itemgetter(1)

Encoded = tuple[list[int], list[int]]
"""Ids of a text, and the end of each token, in characters."""


class NotSeparable(Exception):
    """A text whose tokens are not those of its words."""


class Words:
    """Encodes as `tokenizer` does, nothing added in front or behind. One thread uses it at a time."""

    def __init__(self, tokenizer: Tokenizer, library: Library | None = None, rules: NativeRules | None = None) -> None:
        """With `library`, words are remembered in C; with `rules` new ones are merged there."""
        self._tokenizer, self._library, self._rules = tokenizer, library, rules
        self.added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        """Id of each added token, by its text."""
        longest_first = sorted(self.added, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._memory = self._empty()

    def another(self) -> Words:
        """Words that encode alike, for another thread."""
        return Words(self._tokenizer, self._library, self._rules)

    def _empty(self) -> WordMemory | NativeMemory:
        added = {text.encode(): i for text, i in self.added.items()}
        if self._library is None:
            return WordMemory(self._spelled, added)
        return NativeMemory(self._library, self._rules, self._spelled, added)

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
        words, tokens = self._memory.held
        if words > MOST_WORDS or tokens > MOST_TOKENS:
            self._memory = self._empty()
        try:
            return self._memory.arrays(data, edges, begins)
        except BaseException:  # some words have no tokens yet
            self._memory = self._empty()
            raise

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

    def _spelled(self, words: Sequence[Word]) -> Iterator[Spelled]:
        """Words as the tokenizer encodes them, some at a time. Raises NotSeparable where a token spans two."""
        plain = np.array([not first and _ends_in_a_sign(word) for first, word in words])
        together = np.flatnonzero(plain)
        for some in np.split(together, range(TOGETHER, len(together), TOGETHER)):
            if len(some):
                yield some, *self._together([words[i][1] for i in some.tolist()])
        rest = np.flatnonzero(~plain)
        if len(rest):
            found = self._encoded([words[i][1].decode() for i in rest.tolist()])
            counts = np.array([len(ids) for ids, _ in found])
            ids = list(itertools.chain.from_iterable(ids for ids, _ in found))
            yield rest, ids, np.concatenate([ends for _, ends in found]), counts

    def _together(self, words: list[bytes]) -> tuple[list[int], Places, Places]:
        """Ids, ends and counts of words that are encoded as one text, which costs a fifth of one by one."""
        text = b"".join(words).decode()
        ((ids, ends),) = self._encoded([text])
        borders = np.cumsum([0, *map(len, words)])
        edges = np.searchsorted(ends, borders, "right")
        if edges[0] or not (edges[1:] > edges[:-1]).all() or (ends[edges[1:] - 1] != borders[1:]).any():
            raise NotSeparable(text)
        counts = np.diff(edges)
        return ids, ends - np.repeat(borders[:-1], counts), counts

    def _encoded(self, texts: list[str]) -> list[tuple[list[int], Places]]:
        """Ids of each text, and the end of each token, in bytes."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False) if texts else []
        pairs = []
        for text, encoding in zip(texts, found, strict=True):
            ends = np.fromiter(map(_SECOND, encoding.offsets), np.int64, len(encoding))
            pairs.append((encoding.ids, ends if text.isascii() else _bytes(text)[ends]))
        return pairs


def _ends_in_a_sign(word: bytes) -> bool:
    """Whether the last character is none of white space: another word may stand behind."""
    return word[-1] not in _SPACES if word[-1] < 0x80 else not word.decode()[-1].isspace()


def _bytes(text: str) -> Places:
    """(n,) -> how many bytes the first n characters take."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))])


def _characters(text: str) -> Places:
    """(n,) -> how many characters the first n bytes belong to."""
    data = np.frombuffer(text.encode(), np.uint8)
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])


def words_of(tokenizer: Tokenizer, text: str = "") -> Words | None:
    """A Words that encodes as `tokenizer` does; None for a tokenizer that does not cut so, or is of another kind.

    `text` is its tokenizer.json, where that is at hand.
    """
    spec: dict[str, Any] = json.loads(text or tokenizer.to_str())
    model, normalizer = spec["model"], spec["normalizer"]
    plain = model["type"] == "BPE" and not model.get("dropout") and not model.get("continuing_subword_prefix")
    if not plain or spec["truncation"] or spec["padding"] or (normalizer and normalizer["type"] != "NFC"):
        return None
    if any(token[flag] for token in spec["added_tokens"] for flag in ("lstrip", "rstrip", "single_word")):
        return None
    texts = _texts(random.Random(0), [token["content"] for token in spec["added_tokens"]][:8])
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    whole = [(one.ids, [end for _, end in one.offsets]) for one in expected]
    for words in _ways(tokenizer, spec):
        with suppress(NotSeparable):
            if words.encode(texts) == whole:
                return words
    return None


def _ways(tokenizer: Tokenizer, spec: dict[str, Any]) -> Iterator[Words]:
    """Words that may do, the quickest first: those that merge by rules are left out where the rules are not known."""
    library = threadless_library()
    rules = rules_of(spec) if library is not None else None
    if library is not None and rules is not None:
        yield Words(tokenizer, library, NativeRules(library, rules))
    yield Words(tokenizer, library)


def _texts(draw: random.Random, added: list[str]) -> list[str]:
    """Texts of all that tokenizers cut at, in every order."""
    texts = [f"{a} {b}" for a in PIECES for b in PIECES if not (a + b).isspace()]
    texts += ["".join(draw.choice((*PIECES, " ", " ", *added)) for _ in range(40)) for _ in range(200)]
    return texts
