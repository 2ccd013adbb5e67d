"""Readers of JSON: a stream of bytes -> its rows, (line, {field: value}), or a BadLine for each that is none.

JSON Lines are split on "\\n" only: U+2028 and the like stand inside strings. Text is UTF-8; a byte-order mark at the
start of the file is accepted and noted. Rows are read one by one, in the memory of one row. The table READERS has one
function for each kind of file; those of tables are in `tables.py`.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from topcoat.data.encodings import refuse_other_encodings
from topcoat.data.lines import MOST_ROW_BYTES, BadFile, BadLine, Blanks, Item, describe, shown, too_long
from topcoat.data.plain import read_document
from topcoat.data.tables import read_csv, read_parquet, read_tsv
from topcoat.json_files import StrictDecoder, quick_object

BOM = "\ufeff"
_SPACE = re.compile(r"[ \t\r\n]*")
_BLANKS = " \t\r\n"  # of JSON: others, as form feed, are no blanks there
CONFLICT = ("<<<<<<< ", "=======", ">>>>>>> ")
_AT_END = 16  # an error this near the end of what was read may be only the cut


def json_problem(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong with a JSON text, and the fix."""
    start = text.lstrip(_BLANKS)
    if start.startswith(CONFLICT):
        return "is a mark of a merge conflict", "resolve the conflict: keep the rows of one side"
    if start.startswith(("{'", "[{'", "['")):
        return "is Python, not JSON: it quotes with '", "write the rows with json.dumps"
    column = f"(column {error.colno:,})"
    if error.msg.startswith("Extra data") and text[error.pos :].lstrip().startswith("{"):
        return f"holds more than one object {column}", "write one object a line"
    if error.msg.startswith("Extra data") and text[error.pos :].strip() == ",":
        return f"ends in a comma {column}", "JSON Lines have no commas between rows: delete it, or name the file .json"
    odd = text[error.pos : error.pos + 1]
    if odd and not odd.isprintable() and odd not in _BLANKS and not error.msg.startswith("Invalid control"):
        what = f"has the character U+{ord(odd):04X} outside of its strings {column}"
        return what, "it was not written completely" if odd == "\0" else "delete it: between values stand blanks only"
    if error.pos >= len(text.rstrip(_BLANKS)) or error.msg.startswith("Unterminated string"):
        if start.rstrip(_BLANKS) in ("{", "[{"):
            return f"is the first line of an object over several lines {column}", "write each object on one line"
        fix = r"complete it or delete it; a line break inside a text is written \n"
        return f"the JSON ends in the middle {column}: it was cut off", fix
    fix = ""
    if error.msg.startswith("Invalid control character"):
        code = ord(text[error.pos])
        return f"has the control character U+{code:04X} in a string {column}", "write the rows with json.dumps"
    if error.msg.startswith("Invalid \\escape"):
        fix = r"double the backslashes, as in C:\\data, or write the rows with json.dumps"
    elif "stands twice" in error.msg:
        return f"is ambiguous: {error.msg}", "keep one of the two"
    elif not start.startswith(("{", "[", '"')):
        fix = "write one JSON object a line; if the file is CSV, name it .csv"
    return f"is not JSON: {error.msg} {column}", fix


class _Constants:
    """NaN and Infinity, which are not JSON, are read as Python does, and noted with their number and first line."""

    def __init__(self) -> None:
        self.line, self.first, self.count = 0, 0, 0

    def __call__(self, name: str) -> None:
        self.first = self.first or self.line
        self.count += 1

    def tell(self, notes: list[str]) -> None:
        if self.count:
            notes.append(f"line {self.first:,} holds NaN or Infinity, which is not JSON ({self.count:,} in all)")


def read_jsonl(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """One JSON object a line; empty lines are skipped."""
    refuse_other_encodings(stream.peek(4096))
    constants = _Constants()
    decoder = StrictDecoder(constants)
    number, joined, blanks = 0, 0, Blanks()
    while data := stream.readline(MOST_ROW_BYTES + 1):
        number += 1
        if len(data) > MOST_ROW_BYTES:
            raise too_long(number)
        if data in (b"\n", b"\r\n"):  # most blank lines, without an attempt to read JSON
            blanks.check(number)
            continue
        value: Any = quick_object(data)
        if value is not None:
            blanks.reset(number)
            yield number, value
            continue
        constants.line = number
        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield not_utf8(number, data, error)
            continue
        if line.startswith(BOM):
            line = line[1:]
            if number == 1:
                notes.append("starts with a byte-order mark (U+FEFF); it was skipped")
            elif not joined:
                joined = number
        if not line.strip(" \t\r\n"):
            blanks.check(number)
            continue
        blanks.reset(number)
        try:
            value = decoder.decode(line)
        except json.JSONDecodeError as error:
            _refuse_whole(number, line)
            yield BadLine(number, *json_problem(line, error))
            continue
        if isinstance(value, dict):
            yield number, value
        elif isinstance(value, list) and number == 1 and value and all(isinstance(item, dict) for item in value):
            raise BadFile("is one JSON array, not JSON Lines", "name it .json")
        else:
            fix = "write each object of the list on a line of its own" if isinstance(value, list) else ""
            if isinstance(value, str) and value.lstrip().startswith("{"):
                fix = "it is JSON inside JSON: json.dumps was called twice, once is right"
            yield BadLine(number, f"is {describe(value)}; expected an object {{...}}", fix)
    if joined:
        notes.append(f"line {joined:,} starts with a byte-order mark: files were joined; it was skipped")
    constants.tell(notes)


def _refuse_whole(number: int, line: str) -> None:
    """Raises BadFile where the first line shows that every line would fail, for one reason."""
    if number != 1:
        return
    if line.strip() == "[":
        raise BadFile("is one JSON array over several lines, not JSON Lines", "name it .json")
    if line.strip() == "{":
        raise BadFile("is JSON over several lines, not JSON Lines", "write each object on one line: jq -c . old > new")
    if line.count("\r") > 1 and "\n" not in line.strip().replace("\r\n", ""):
        raise BadFile("ends its lines with \\r alone, as old Macs did", "write it with \\n: tr '\\r' '\\n' < old > new")


def not_utf8(line: int, data: bytes, error: UnicodeDecodeError) -> BadLine:
    """A line of bytes that is no UTF-8."""
    what = f"is not UTF-8: byte 0x{data[error.start]:02x} at byte {error.start + 1:,} of the line"
    return BadLine(line, what, "if the file is Latin-1, save it as UTF-8: iconv -f LATIN1 -t UTF-8 old > new")


class _Text:
    """Text of a stream, decoded as it is needed; `text` holds what is read and not yet dropped, from `line` on."""

    def __init__(self, stream: io.BufferedReader, notes: list[str]) -> None:
        refuse_other_encodings(stream.peek(4096))
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8")()
        self.text, self.line, self.at_end = "", 1, False
        self.more(1)
        if self.text.startswith(BOM):
            self.text = self.text[1:]
            notes.append("starts with a byte-order mark (U+FEFF); it was skipped")

    def more(self, size: int) -> None:
        """Read `size` more bytes, at least 1 MiB."""
        data = self._stream.read(max(size, 2**20))
        self.at_end = not data
        try:
            self.text += self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object.count(b"\n", 0, error.start)
            bad = not_utf8(line, error.object, error)
            what = f"line {line:,} is not UTF-8: byte 0x{error.object[error.start]:02x}"
            raise BadFile(what, bad.fix) from error

    def drop(self, at: int) -> None:
        """Forget what stands before `at`."""
        self.line += self.text.count("\n", 0, at)
        self.text = self.text[at:]

    def skip(self, at: int) -> int:
        """The first place from `at` on that is no white space."""
        while True:
            at = _SPACE.match(self.text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if at < len(self.text) or self.at_end:
                return at
            self.drop(at)
            at = 0
            self.more(1)

    def value(self, decoder: StrictDecoder, at: int) -> tuple[object, int]:
        """The JSON value at `at`, and its end. Raises JSONDecodeError."""
        while True:
            try:
                value, end = decoder.decode_one(self.text, at)
                if end < len(self.text) or self.at_end:  # a number may go on
                    return value, end
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _AT_END or error.msg.startswith("Unterminated string")
                if self.at_end or not cut:
                    raise
            if len(self.text) - at > MOST_ROW_BYTES:
                raise too_long(self.line + self.text.count("\n", 0, at))
            self.more(len(self.text) - at)


def read_json(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """One JSON array of objects. Items are decoded one by one, so each knows its line."""
    text, constants = _Text(stream, notes), _Constants()
    decoder = StrictDecoder(constants)
    at = text.skip(0)
    if text.text[at : at + 1] != "[":
        if at >= len(text.text):
            return
        _refuse_top_level(text, decoder, at)
    at = text.skip(at + 1)
    while text.text[at : at + 1] != "]":
        if at > 2**16:
            text.drop(at)
            at = 0
        line = constants.line = text.line + text.text.count("\n", 0, at)
        try:
            value, end = text.value(decoder, at)
        except json.JSONDecodeError as error:
            what, fix = json_problem(text.text, error)
            yield BadLine(text.line + error.lineno - 1, what, fix)
            return
        yield (line, value) if isinstance(value, dict) else BadLine(line, f"is {describe(value)}; expected an object")
        at = text.skip(end)
        following = text.text[at : at + 1]
        if following == ",":
            at = text.skip(at + 1)
            if text.text[at : at + 1] == "]":
                yield BadLine(text.line + text.text.count("\n", 0, at), "has a comma before the ]", "delete it")
        elif following != "]":
            cut = at >= len(text.text)
            what = "the array ends in the middle: it was cut off" if cut else "expected a comma or ]"
            yield BadLine(text.line + text.text.count("\n", 0, at), what)
            return
    if text.skip(at + 1) < len(text.text):
        raise BadFile("has text behind the end of its array", "one file holds one array")
    constants.tell(notes)


def _refuse_top_level(text: _Text, decoder: StrictDecoder, at: int) -> None:
    """Raises BadFile: the file holds JSON that is no array."""
    try:
        value, end = text.value(decoder, at)
    except json.JSONDecodeError as error:
        what, fix = json_problem(text.text, error)
        raise BadFile(f"line {text.line + error.lineno - 1:,} {what}", fix) from error
    end = text.skip(end)
    if isinstance(value, dict) and text.text[end : end + 1] == "{":
        raise BadFile("holds one object after another, not one array: these are JSON Lines", "name it .jsonl")
    if isinstance(value, dict) and text.text[end : end + 1] == "[":
        raise BadFile("mixes JSON Lines and an array", "write all rows one way")
    fix = _way_to_rows(value) if isinstance(value, dict) else "write [ ... ] around the rows"
    raise BadFile(f"is {describe(value)} at the top level; expected a list of objects", fix)


def _way_to_rows(value: dict[str, Any]) -> str:
    """What to do with an object in place of a list of rows."""
    inner = list(value.values())
    columns = 'it holds columns; write rows, with pandas: to_json(file, orient="records")'
    if inner and all(isinstance(one, dict) for one in inner):
        numbered = all(key.isdecimal() for one in inner for key in one)
        return columns if numbered else "write only its values, in a list: [ ... ]"
    lists = [key for key, one in value.items() if isinstance(one, list)]
    if len(lists) > 1 and len({len(value[key]) for key in lists}) == 1 and len(lists) == len(inner):
        return columns
    return f"write only the list in {shown(lists[0])!r}" if lists else "write [ ... ] around the rows"


READERS: dict[str, Callable[[io.BufferedReader, list[str]], Iterator[Item]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_document,
    ".md": read_document,
}
