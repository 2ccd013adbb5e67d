"""Readers of tables: comma- and tab-separated text under a header, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from topcoat.data.encodings import refuse_other_encodings
from topcoat.data.lines import (
    MOST_LINES,
    MOST_ROW_BYTES,
    BadFile,
    BadLine,
    Blanks,
    Item,
    names,
    repeated,
    shown,
    too_long,
)

BATCH_ROWS = 256
MOST_PACKED_PARQUET = 2**30  # Parquet is read from its end, so a packed one is unpacked whole


def read_csv(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """Comma-separated records under a header."""
    return _read_separated(stream, notes, ",")


def read_tsv(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """Tab-separated records under a header."""
    return _read_separated(stream, notes, "\t")


def _read_separated(stream: io.BufferedReader, notes: list[str], separator: str) -> Iterator[Item]:
    refuse_other_encodings(stream.peek(4096))
    if not stream.peek(1):
        return
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    try:
        yield from _records(_Lines(text, notes), separator)
    finally:
        text.detach()  # the stream is closed by who opened it


def _records(lines: _Lines, separator: str) -> Iterator[Item]:
    """Records of the lines, under the first one as header; a record's line is where it starts."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    blanks = Blanks()
    while True:
        line = lines.number + 1
        lines.begin()
        try:
            fields = _next(reader)
        except csv.Error as error:
            said = str(error)
            what = "a quote is opened and never closed" if "unexpected end" in said else said.replace("\t", "a tab")
            yield BadLine(line, f"is not a record: {what}", 'double a quote inside a quoted field: "she said ""hi"""')
            return
        except UnicodeEncodeError as error:
            byte = ord(error.object[error.start]) - 0xDC00
            yield BadLine(lines.number, f"is not UTF-8: byte 0x{byte:02x}", _TO_UTF8)
            return
        if fields is None:
            return
        if not any(fields) and (len(fields) < 2 or header is None):
            blanks.check(lines.number)
            continue
        blanks.reset(lines.number)
        if header is None:
            header = fields
            _check_header(header, separator)
        elif len(fields) != len(header):
            size = f"{len(fields):,} {'field' if len(fields) == 1 else 'fields'}"
            what = f"has {size}; the header has {len(header)} ({names(header)})"
            yield BadLine(line, what, "quote fields that hold a separator or a line break")
        else:
            yield line, dict(zip(header, fields, strict=True))


_TO_UTF8 = "if the file is Latin-1 (Excel), save it as UTF-8: iconv -f LATIN1 -t UTF-8 old > new"


def _next(reader: Any) -> list[str] | None:
    """The next record. The csv module's limit of 128 KiB a field is process-wide: raised, and left as found."""
    limit = csv.field_size_limit(MOST_ROW_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """Lines of a stream as csv wants them: `number` of them read, each decoded and held to the length of a row."""

    def __init__(self, text: io.TextIOWrapper, notes: list[str]) -> None:
        self._text, self._notes = text, notes
        self.number, self._size, self._start = 0, 0, 1

    def begin(self) -> None:
        """A record begins."""
        self._size, self._start = 0, self.number + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MOST_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        if self._size > MOST_ROW_BYTES:
            raise too_long(self._start)
        if self.number - self._start > MOST_LINES:
            what = f"line {self._start:,} begins a record of over {MOST_LINES:,} lines: a quote is never closed"
            raise BadFile(what, 'double a quote inside a quoted field: "she said ""hi"""')
        if not line.isascii():
            line.encode("utf-8")  # what was no UTF-8 was read as halves of surrogate pairs, and fails here
        if self.number == 1 and line.startswith("\ufeff"):
            self._notes.append("starts with a byte-order mark (U+FEFF); it was skipped")
            return line[1:]
        return line


def _check_header(header: list[str], separator: str) -> None:
    twice = repeated(header)
    if twice is not None:
        raise BadFile(f"names the column {shown(twice)!r} twice in its header", "name each column once")
    if header[0].lstrip().startswith(("{", "[{")):
        raise BadFile("holds JSON, not a table", "name it .jsonl, or .json if it is one array")
    if header[0].lower().startswith("sep="):
        raise BadFile(f"begins with {shown(header[0])!r}, which only Excel reads", "delete that line, and use commas")
    if len(header) > 1:
        return
    for other, name in (("\t", "tabs"), (";", "semicolons"), ("|", "bars"), (",", "commas")):
        if other != separator and other in header[0]:
            wanted = "commas" if separator == "," else "tabs"
            named = {"\t": "name it .tsv", ",": "name it .csv"}.get(other, f"write it with {wanted}")
            raise BadFile(f"separates its columns with {name}, not {wanted} ({shown(header[0])})", named)


def read_parquet(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """Rows of a Parquet file; the number is the row's, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = stream
    if not stream.seekable():
        data = stream.read(MOST_PACKED_PARQUET + 1)
        if len(data) > MOST_PACKED_PARQUET:
            raise BadFile("unpacks to over 1 GiB", "unpack it: Parquet is packed inside already")
        source = io.BytesIO(data)
    number = 0
    try:
        file = pq.ParquetFile(source)
        twice = repeated(file.schema_arrow.names)
        if twice is not None:
            raise BadFile(f"names the column {shown(twice)!r} twice", "name each column once")
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for row in _rows_of(batch, number):
                number += 1
                yield number, row
    except UnicodeDecodeError as error:  # pyarrow holds names as bytes until they are asked for
        what = f"has a column whose name is not UTF-8: byte 0x{error.object[error.start]:02x}"
        raise BadFile(what, "write it again, with names in UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        first = "".join(c if c.isprintable() else "\ufffd" for c in str(error).strip().split("\n")[0].rstrip(".")[:200])
        behind = f" behind row {number:,}" if number else ""
        raise BadFile(f"is not a whole Parquet file{behind}: {first}", "download or write it again") from error


def _rows_of(batch: Any, before: int) -> list[dict[str, Any]]:
    """The rows of a batch that stands behind `before` others.

    Raises:
        BadFile: a value Python cannot hold, such as a time stamp finer or later than its own, or text that is no UTF-8.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError, LookupError) as error:  # pyarrow's own errors are among them
        for at in range(batch.num_rows):  # the first that fails alone is the one
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[at].as_py()
                except (ValueError, OverflowError, LookupError) as problem:
                    said = str(problem).strip().split("\n")[0].split(". ")[0].rstrip(".")
                    what = f"row {before + at + 1:,}: {shown(name)!r} holds a value Python cannot hold: {said}"
                    raise BadFile(what, "drop that column, or write it as text") from problem
        raise BadFile(f"holds a value Python cannot hold behind row {before:,}: {error}", "") from error
