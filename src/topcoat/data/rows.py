"""Rows of a data file, each remembering its file and line: .jsonl, .json, .csv, .tsv, .parquet, and these packed.

A file is opened and unpacked by `opening.py` and read row by row by our own readers (`readers.py`). Rows that cannot be
read are gathered and said together, the first 20 of them, each with its file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topcoat.data.lines import TEXTS, BadFile, BadLine, deep_row, escaped
from topcoat.data.opening import PACKED, Reached, kind_of, opened
from topcoat.data.readers import READERS
from topcoat.errors import Problem, TopcoatError

SHOWN = 20  # bad rows shown; the rest are counted


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its fields, and where it stands (`line` counts from 1; in a Parquet file it is the row's number)."""

    values: dict[str, Any]
    file: str
    line: int

    @property
    def place(self) -> str:
        """Such as "train.jsonl line 4,812"."""
        return place(self.file, self.line)


def place(file: str, line: int) -> str:
    """Where a row stands, for people: the file's name and the line (Parquet: the row)."""
    name = escaped(Path(file).name)
    unpacked = Path(name).stem if Path(name).suffix.lower() in PACKED else name
    if unpacked.lower().endswith(TEXTS):  # one document
        return name
    return f"{name} {'row' if unpacked.lower().endswith('.parquet') else 'line'} {line:,}"


@dataclass
class BadRows:
    """Collects what is wrong with rows, so that it is said at once."""

    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, what: str, fix: str = "") -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.problems.append(Problem(f"{where}: {what}", "", fix))

    def raise_if_any(self) -> None:
        """Raises TopcoatError with the first 20 problems and how many more there are."""
        if self.count > SHOWN:
            self.problems.append(Problem(f"and {self.count - SHOWN:,} more bad rows ({self.count:,} in all)"))
        if self.problems:
            raise TopcoatError.gather(self.problems)


def read_rows(path: str | Path, notes: list[str] | None = None) -> list[Row]:
    """All rows of the file at `path`, in order; things worth telling (a byte-order mark) are appended to `notes`.

    Raises:
        TopcoatError: no such file, not a file of rows, unreadable, empty, or rows that are not rows.
    """
    return list(iter_rows(path, notes))


def iter_rows(path: str | Path, notes: list[str] | None = None, reached: Reached | None = None) -> Iterator[Row]:
    """The rows of the file at `path`, in order, each read as it is asked for: memory does not grow with the file.

    What the path and the first bytes show is raised at the first row. A line that is no row ends the rows; the rest of
    the file is then read for what else is wrong with it, and all of it is raised at once. What is worth telling is
    appended to `notes` when the last row was read, and only then is it sure that the file was whole and did not change
    meanwhile: whoever keeps something of its rows keeps it after the last one. `reached` counts the bytes read.

    Raises:
        TopcoatError: no such file, not a file of rows, unreadable, empty, changed meanwhile, or rows that are none.
    """
    path = Path(path)
    kind, packed = kind_of(path)
    bad, found = BadRows(), False
    said: list[str] = []
    try:
        with opened(path, kind, packed, reached) as stream:
            is_blank = not stream.peek(1).strip(b" \t\r\n\xef\xbb\xbf")
            for item in READERS[kind](stream, said) if stream.peek(1) else ():
                found = True
                wrong = item if isinstance(item, BadLine) else deep_row(*item)
                if wrong is not None:
                    bad.add(place(str(path), wrong.line), wrong.what, wrong.fix)
                elif not bad.count and not isinstance(item, BadLine):
                    yield Row(item[1], str(path), item[0])
    except BadFile as error:
        raise TopcoatError(f"{escaped(path.name)} {error.what}", str(path), error.fix) from error
    bad.raise_if_any()
    if not found:
        what = "is empty: it has no rows" if is_blank else "has no rows"
        raise TopcoatError(f"{escaped(path.name)} {what}", str(path), "write at least one row into it")
    if notes is not None:
        notes.extend(f"{escaped(path.name)} {note}" for note in said)
