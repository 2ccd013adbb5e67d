"""Rules of merging: how a byte-level BPE cuts text into pieces and merges these, read off its tokenizer.json.

Known are GPT-2's cut, with or without every digit alone (Radford et al. 2019, section 2.2), and cl100k's, of Llama 3
and Qwen: they differ in what begins a piece, what a line break belongs to, and how many digits one piece has. Merging:
Sennrich et al. 2016, arXiv:1508.07909, algorithm 1. `kernels/native/words.c` follows them; words.py proves each use.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.data.word_cuts import WIDE_SPACES

GPT2, CL100K = 1, 2  # pieces.h
UNKNOWN, LETTER, DIGIT, WHITE, SIGN = range(5)
KINDS = 0x20000
WHITE_SPACE = {*range(9, 14), 32, *WIDE_SPACES}
LONG_S = 0x17F  # is an s to an expression that takes any case
PADDING = bytes(24)  # that words.c may read behind a text
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BY_CASE = r"'(?i:[sdmt]|ll|ve|re)"
_CL100K = re.compile(
    rf"(?:{re.escape(_CONTRACTIONS)}|{re.escape(_BY_CASE)})"
    + re.escape(r"|[^\r\n\p{L}\p{N}]?") + r"\\p\{L\}\+\+?"
    + re.escape(r"|\p{N}") + r"(\{1,3\}|\+)?"
    + re.escape(r"| ?[^\s\p{L}\p{N}]+") + r"\+?" + re.escape(r"[\r\n]*|\s*[\r\n]") + r"\+?"
    + re.escape(r"|\s+(?!\S)|\s+")
)  # fmt: skip
DIGITS = {None: 1, "{1,3}": 3, "+": 0}
"""How cl100k's expression repeats \\p{N} -> most digits of a piece, 0 for any number."""


@dataclass(frozen=True)
class Rules:
    """What words.c needs: the cut (GPT2 or CL100K) and most digits of a piece, kinds of characters (KINDS,), ids of the
    bytes (256,), -1 for one that is no token, merges (M, 3) of left, right and whole in order of rank, and the tokens
    that a piece is taken for whole where it is one, or None."""

    kind: int
    digits: int
    kinds: NDArray[np.uint8]
    byte_ids: NDArray[np.int32]
    merges: NDArray[np.int32]
    whole: list[bytes] | None
    whole_ids: NDArray[np.int32]


def rules_of(spec: Mapping[str, Any]) -> Rules | None:
    """The rules of a tokenizer by its tokenizer.json; None where they are others."""
    cut, model = _cut(spec["pre_tokenizer"]), spec["model"]
    if cut is None or model["type"] != "BPE" or model.get("end_of_word_suffix") or _trims(spec["post_processor"]):
        return None
    characters = byte_characters()
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    sides = [[pair[0] for pair in pairs], [pair[1] for pair in pairs], [pair[0] + pair[1] for pair in pairs]]
    merges = np.array([list(map(vocabulary.__getitem__, texts)) for texts in sides], np.int32).T
    whole = None
    if model.get("ignore_merges"):
        code = {character: byte for byte, character in enumerate(characters)}
        known = [text for text in vocabulary if code.keys() >= set(text)]
        whole = [bytes(map(code.__getitem__, text)) for text in known]
    return Rules(
        *cut,
        kinds_of_characters(bool(spec["normalizer"])),
        np.array([vocabulary.get(character, -1) for character in characters], np.int32),
        np.ascontiguousarray(merges),
        whole,
        np.array([vocabulary[text] for text in known] if whole is not None else [], np.int32),
    )


@lru_cache
def kinds_of_characters(composed: bool) -> NDArray[np.uint8]:
    """What each character up to KINDS is to the expressions, 0 where it is not sure.

    Sure is what was so in Unicode 3.2 and is so today, and emoji: whatever tables the tokenizer has, they agree. A text
    that is `composed` (NFC) before it is cut is sure where no character of it may become, or join, another.
    """
    kinds = np.zeros(KINDS, np.uint8)
    for code in chain(range(0x3100), range(0xFF00, 0xFFF0)):
        character = chr(code)
        category = unicodedata.category(character)
        if code in WHITE_SPACE:
            kinds[code] = WHITE
        elif category == unicodedata.ucd_3_2_0.category(character) and category not in ("Cn", "Cs", "Zs", "Zl", "Zp"):
            kinds[code] = {"L": LETTER, "N": DIGIT}.get(category[0], SIGN)
        if composed and (category[0] == "M" or not unicodedata.is_normalized("NFC", character)):
            kinds[code] = UNKNOWN
    for first, last in ((0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)):  # Han, Han, Hangul
        kinds[first : last + 1] = LETTER
    kinds[0x1F300:0x1FB00] = SIGN  # emoji
    kinds[0x1100:0x1200] = UNKNOWN  # parts of Hangul syllables, which join
    kinds[LONG_S] = UNKNOWN
    kinds.setflags(write=False)
    return kinds


def byte_characters() -> list[str]:
    """The character that stands for each byte in the vocabulary of a byte-level BPE, as GPT-2 has them."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _cut(pre: dict[str, Any] | None) -> tuple[int, int] | None:
    """(kind, most digits) of a pre-tokenizer."""
    if pre is None:
        return None
    *before, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"] and not before:
        return GPT2, 0
    if len(before) != 1:
        return None
    if last["use_regex"]:
        alone = before[0]["type"] == "Digits" and before[0]["individual_digits"]
        return (GPT2, 1) if alone else None
    if before[0]["type"] != "Split" or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        return None
    found = _CL100K.fullmatch(before[0]["pattern"].get("Regex", ""))
    return (CL100K, DIGITS[found[1]]) if found else None


def _trims(post: dict[str, Any] | None) -> bool:
    """Whether the white space of a token is taken off its place in the text."""
    steps = post["processors"] if post and post["type"] == "Sequence" else [post]
    return any(step and step["type"] == "ByteLevel" and step["trim_offsets"] for step in steps)
