"""Characters that nobody sees: control codes, marks that reorder what is read, and invisible copies of ASCII.

They come from broken conversions, or were put there: text behind a right-to-left override reads otherwise than it is
tokenized (Boucher & Anderson 2021, arXiv:2111.00169), and tag characters (U+E0000 on) spell what only a model reads.
Marks that right-to-left scripts need stay in text that has letters of one; so do the tags of flags.
"""

from __future__ import annotations

import re
import unicodedata

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.damage import repair
from topcoat.data.checks.finding import Finding, count
from topcoat.data.checks.sides import BESIDE

_CONTROL = "\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f\x80-\x84\x86-\x9f\ufff9-\ufffb\ufffe\uffff"
_ALWAYS = f"[{_CONTROL}\u202d\u202e]|\x1b(?!\\[)|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
_MARKS = "[\u202a-\u202c\u2066-\u2069]"
_HIDDEN = re.compile(f"{_ALWAYS}|{_MARKS}")
_HIDDEN_IN_RIGHT_TO_LEFT = re.compile(_ALWAYS)
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_ANY = re.compile(f"[{_CONTROL}\x1b\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
NAMES = {"\x00": "NUL", "\x08": "BACKSPACE", "\x1b": "ESCAPE", "\x7f": "DELETE"}


def strip_hidden(text: str) -> str:
    """`text` without the characters that nobody sees."""
    return text if _ANY.search(text) is None else _pattern(text).sub("", text)


def hidden_characters(corpus: Corpus) -> list[Finding]:
    """Control characters, marks of direction in text that has none to mark, and tag characters."""
    details = {at: f"{said} ({BESIDE})" for at, said in corpus.sides.found(_first)}
    for at, texts in enumerate(zip(corpus.prompts, corpus.written, strict=True)):
        if said := _first(texts[0]) or _first(texts[1]):
            details[at] = said
    if not details:
        return []
    details = dict(sorted(details.items()))
    what = f"{count(len(details), 'row holds', 'rows hold')} characters that nobody sees"
    why = "the model learns to write them, and they can hide words from whoever reads the rows"
    return [Finding(what, why, "take them out (--fix does)", list(details), details)]


def _first(text: str) -> str:
    """The name of the first hidden character, or nothing."""
    if _ANY.search(text) and (match := _pattern(text).search(repair(text))):
        return _named(match[0][0])
    return ""


def _pattern(text: str) -> re.Pattern[str]:
    return _HIDDEN_IN_RIGHT_TO_LEFT if _RIGHT_TO_LEFT.search(text) else _HIDDEN


def _named(character: str) -> str:
    name = NAMES.get(character) or unicodedata.name(character, "CONTROL CHARACTER")
    return f"U+{ord(character):04X} {name}"
