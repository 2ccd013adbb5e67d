"""Rows of a data file, each remembering its file and line: .jsonl, .json, .csv, .tsv, .parquet, and .gz of these.

A file is read whole, row by row, by our own readers (`readers.py`). Rows that cannot be read are gathered and said
together, the first 20 of them, each with its file, line and field.
"""

from __future__ import annotations

import difflib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topcoat.data.readers import READERS, BadFile, BadLine
from topcoat.errors import Problem, TopcoatError

SHOWN = 20  # bad rows shown; the rest are counted
KINDS = ", ".join(READERS) + ", or one of these with .gz behind it"


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
    name = Path(file).name
    return f"{name} {'row' if name.removesuffix('.gz').endswith('.parquet') else 'line'} {line:,}"


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
    path = Path(path)
    kind = _kind(path)
    data = _read_bytes(path)
    bad = BadRows()
    rows: list[Row] = []
    said: list[str] = []
    try:
        if path.suffix.lower() == ".gz":
            data = _gunzip(path, data)
        if not data.strip(b" \t\r\n\xef\xbb\xbf"):
            raise BadFile("is empty: it has no rows", "write at least one row into it")
        for item in _items(kind, data, said):
            if isinstance(item, BadLine):
                bad.add(place(str(path), item.line), item.what, item.fix)
            else:
                rows.append(Row(item[1], str(path), item[0]))
    except BadFile as error:
        raise TopcoatError(f"{path.name} {error.what}", str(path), error.fix) from error
    bad.raise_if_any()
    if not rows:
        raise TopcoatError(f"{path.name} has no rows", str(path), "write at least one row into it")
    if notes is not None:
        notes.extend(f"{path.name} {note}" for note in said)
    return rows


def _items(kind: str, data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    yield from READERS[kind](data, notes)


def _kind(path: Path) -> str:
    """The file's kind by its name: ".jsonl" for "a.jsonl" and "a.jsonl.gz"."""
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith(tuple(READERS)))
        inside = f"; it holds {', '.join(files[:5])}" if files else ""
        raise TopcoatError(f"{path} is a folder; expected one file of rows{inside}", "data", "name one file in it")
    if not path.exists():
        raise TopcoatError(f"there is no file {path}", "data", _near(path))
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind not in READERS:
        hint = '; plain text goes into a .jsonl file, one {"text": ...} object a line' if kind == ".txt" else ""
        what = f"the extension {kind!r} of {path.name} is not one of a file of rows"
        raise TopcoatError(what, str(path), f"use {KINDS}{hint}")
    return kind


def _near(path: Path) -> str:
    """What to type instead of a file that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} is not there either; check the path from {Path.cwd()}"
    names = [p.name for p in folder.iterdir() if p.is_file()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near += sorted(name for name in names if name.split(".")[0] == path.name.split(".")[0] and name not in near)[:3]
    if near:
        return f"in {folder} there is {', '.join(near)}"
    data = sorted(name for name in names if name.lower().removesuffix(".gz").endswith(tuple(READERS)))[:5]
    return f"in {folder} there is {', '.join(data)}" if data else f"no data file is in {folder}; check the path"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TopcoatError(f"{path.name} cannot be read: {reason}", str(path), "check its permissions") from error


def _gunzip(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise BadFile("is a gzip file that ends too early: it was cut off", "download or write it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        fix = f"if it is not compressed, name it {path.name.removesuffix('.gz')}; otherwise write it again"
        raise BadFile(f"is not a whole gzip file ({error})", fix) from error
