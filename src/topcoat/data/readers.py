"""Readers: the bytes of one file -> its rows, (line, {field: value}), or a BadLine for each that is none.

The table READERS has one function for each kind of file. Text is UTF-8. JSON Lines are split on "\\n" only: U+2028 and
the like stand inside strings. A byte-order mark at the start of the file is accepted and noted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BOM = "\ufeff"


@dataclass(frozen=True)
class BadLine:
    """A line that is no row."""

    line: int
    what: str
    fix: str = ""


class BadFile(Exception):
    """The file as a whole cannot be read: `what` continues "train.jsonl ..."."""

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


def describe(value: Any) -> str:
    """A JSON value in words: 17 -> "a number (17)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:6])) or 'no fields'}"
    return f"a {type(value).__name__} ({value})"


def decode(data: bytes, notes: list[str]) -> str:
    """UTF-8 text without its byte-order mark.

    Raises:
        BadFile: UTF-16, UTF-32, or bytes that are not UTF-8, with the line of the first.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:200].count(0) > len(data[:200]) // 4:
        raise BadFile("is UTF-16, not UTF-8", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 old > new")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"line {line:,} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}"
        raise BadFile(what, "if it is Latin-1, save it as UTF-8: iconv -f LATIN1 -t UTF-8 old > new") from error
    if text.startswith(BOM):
        notes.append("starts with a byte-order mark (U+FEFF); it was skipped")
        return text[1:]
    return text


def loads(text: str) -> Any:
    """json.loads, whose every failure is a JSONDecodeError: also nesting and numbers beyond what Python reads."""
    with _as_json_errors(text, 0):
        return json.loads(text)


def _raw_decode(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    with _as_json_errors(text, at):
        return decoder.raw_decode(text, at)


@contextmanager
def _as_json_errors(text: str, at: int) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("brackets are nested too deeply", text, at) from error
    except ValueError as error:  # Python refuses integers of more than 4,300 digits
        raise json.JSONDecodeError("a number has too many digits", text, at) from error


def json_problem(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong with a JSON text, and the fix."""
    if text.lstrip().startswith(("{'", "[{'", "['")):
        return "is Python, not JSON: it quotes with '", "write the rows with json.dumps"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"the JSON ends in the middle (column {error.colno:,}): it was cut off", "complete it or delete it"
    return f"is not JSON: {error.msg} (column {error.colno:,})", ""


def read_jsonl(data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """One JSON object a line; empty lines are skipped."""
    text = decode(data, notes)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(" \t\r"):
            continue
        try:
            value = loads(line)
        except json.JSONDecodeError as error:
            if number == 1 and line.strip() == "[":
                raise BadFile("is one JSON array over several lines, not JSON Lines", "name it .json") from error
            yield BadLine(number, *json_problem(line, error))
            continue
        if isinstance(value, dict):
            yield number, value
        elif isinstance(value, list) and number == 1 and value and all(isinstance(item, dict) for item in value):
            raise BadFile("is one JSON array, not JSON Lines", "name it .json")
        else:
            yield BadLine(number, f"is {describe(value)}; expected an object {{...}}")


def read_json(data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """One JSON array of objects. Items are decoded one by one, so each knows its line."""
    text = decode(data, notes)
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at] != "[":
        _refuse_top_level(text, decoder, at)
    at, line, counted = _skip(text, at + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _raw_decode(decoder, text, at)
        except json.JSONDecodeError as error:
            what, fix = json_problem(text, error)
            yield BadLine(error.lineno, what, fix)
            return
        yield (line, value) if isinstance(value, dict) else BadLine(line, f"is {describe(value)}; expected an object")
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            cut = at >= len(text)
            yield BadLine(line, "the array ends in the middle: it was cut off" if cut else "expected a comma or ]")
            return
    if text[at + 1 :].strip():
        raise BadFile("has text behind the end of its array", "one file holds one array")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _refuse_top_level(text: str, decoder: json.JSONDecoder, at: int) -> None:
    try:
        value, end = _raw_decode(decoder, text, at)
    except json.JSONDecodeError as error:
        what, fix = json_problem(text, error)
        raise BadFile(f"line {error.lineno:,} {what}", fix) from error
    if isinstance(value, dict) and text[end:].lstrip().startswith("{"):
        raise BadFile("holds one object after another, not one array: these are JSON Lines", "name it .jsonl")
    lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    fix = f"write only the list in {lists[0]!r}" if lists else "write [ ... ] around the rows"
    raise BadFile(f"is {describe(value)} at the top level; expected a list of objects", fix)


def _read_separated(data: bytes, notes: list[str], separator: str) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    text = decode(data, notes)
    limit = csv.field_size_limit(max(len(text), 1))  # the default refuses fields over 128 KiB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        items = list(_records(reader))
    finally:
        csv.field_size_limit(limit)  # process-wide: left as found
    yield from items


def _records(reader: Any) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Records of a csv.reader whose first one is the header; a record's line is where it starts."""
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            what = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            yield BadLine(line, f"is not a record: {what}", 'double a quote inside a quoted field: "she said ""hi"""')
            return
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise BadFile(f"names the column {twice[0]!r} twice in its header", "name each column once")
        elif len(fields) != len(header):
            what = f"has {len(fields)} fields; the header has {len(header)} ({', '.join(header[:8])})"
            yield BadLine(line, what, "quote fields that hold a separator or a line break")
        else:
            yield line, dict(zip(header, fields, strict=True))


def read_csv(data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Comma-separated records under a header."""
    return _read_separated(data, notes, ",")


def read_tsv(data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Tab-separated records under a header."""
    return _read_separated(data, notes, "\t")


def read_parquet(data: bytes, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]] | BadLine]:
    """Rows of a Parquet file; the number is the row's, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise BadFile(f"is not a whole Parquet file: {first}", "download or write it again") from error
    except ValueError as error:  # such as a time stamp finer than Python's
        raise BadFile(f"holds a value Python cannot hold: {error}", "drop that column, or round it") from error
    yield from enumerate(rows, start=1)


READERS: dict[str, Callable[[bytes, list[str]], Iterator[tuple[int, dict[str, Any]] | BadLine]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
