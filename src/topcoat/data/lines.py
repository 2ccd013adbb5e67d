"""What a reader hands over: (line, {field: value}) for a row, or a BadLine; and a value said in words.

Names and values from a file are shown cut to length and with what steers a terminal escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TEXTS = (".txt", ".md")
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", *TEXTS)
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = f"{', '.join(KINDS)}, each also with {', '.join(PACKINGS[:-1])} or {PACKINGS[-1]} behind it"
"""What the name of a file of rows ends in."""

MOST_ROW_BYTES = 64 * 2**20
"""Longest row that is read: some 16 million tokens. A file without line ends must not fill the memory."""

MOST_LEVELS = 64
"""Most levels of brackets in a field, and in tools and arguments: what walks a row does so recursively."""

MOST_LINES = 1_000_000
"""Most lines of one record, and most blank lines on end: what has more is no file of rows, and takes long to read."""


@dataclass(frozen=True)
class BadLine:
    """A line that is no row."""

    line: int
    what: str
    fix: str = ""


Item = tuple[int, dict[str, Any]] | BadLine


class BadFile(Exception):
    """The file as a whole cannot be read: `what` continues "train.jsonl ..."."""

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


def too_long(line: int) -> BadFile:
    """The refusal of a row over MOST_ROW_BYTES that begins in `line`."""
    what = f"line {line:,} begins a row of over {MOST_ROW_BYTES // 2**20} MiB, more than any context holds"
    return BadFile(what, "end each row with a line feed; cut a long document into several rows")


class Blanks:
    """Blank lines on end, counted against MOST_LINES."""

    def __init__(self) -> None:
        self._line = 0

    def reset(self, line: int) -> None:
        """`line` is a row."""
        self._line = line

    def check(self, line: int) -> None:
        """`line` is blank. Raises BadFile."""
        if line - self._line > MOST_LINES:
            what = f"has over {MOST_LINES:,} blank lines from line {self._line + 1:,} on"
            raise BadFile(what, "it was not written completely, or packed to fill a disk: write it again")


def too_deep(value: Any, levels: int = MOST_LEVELS) -> bool:
    """Whether a value nests its brackets over `levels` deep. It looks no deeper than that."""
    if not isinstance(value, dict | list | tuple):
        return False
    return levels == 0 or any(
        too_deep(one, levels - 1)
        for one in (value.values() if isinstance(value, dict) else value)
        if type(one) is not str
    )


def deep_row(line: int, values: dict[str, Any]) -> BadLine | None:
    """The refusal of a row with a field that nests too deeply, or None."""
    for name, value in values.items():
        if type(value) is not str and too_deep(value):
            what = f'"{shown(name)}" is nested more than {MOST_LEVELS} levels deep'
            return BadLine(line, what, "write it flatter, or leave that field out of the file")
    return None


def escaped(given: object) -> str:
    """A text or path with control characters, marks of direction and halves of characters written as escapes."""
    text = str(given)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def repeated(names: Iterable[str]) -> str | None:
    """The first name in order of the alphabet that stands twice, or None."""
    return min((name for name, times in Counter(names).items() if times > 1), default=None)


def names_rows(name: str) -> bool:
    """Whether a file of this name is one of rows."""
    return name.lower().endswith(tuple(kind + packing for kind in KINDS for packing in ("", *PACKINGS)))


def shown(name: object) -> str:
    """A name from a file: its first 40 characters, with control characters and halves of characters escaped."""
    text = str(name)
    text = text if len(text) <= 40 else text[:40] + "…"
    return text if text.isprintable() else repr(text)[1:-1]


def names(found: Iterable[object], most: int = 8) -> str:
    """Names from a file, the first `most` of them, with commas between."""
    listed = list(found)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(map(shown, listed[:most])) + more


def describe(value: Any) -> str:
    """A JSON value in words: 17 -> "a number (17)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int):
        return f"a number ({value})" if abs(value) < 10**20 else "a number (of over 20 digits)"
    if isinstance(value, float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {names(value, 6) or 'no fields'}"
    return f"a {type(value).__name__} ({shown(value)})"
