"""Files that are broken as bytes: encodings, JSON Lines, tables, packings. The cases of test_bad_files.py."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

USER, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}

ROW = {"prompt": "Hello", "completion": "Hi"}

LINE = json.dumps(ROW) + "\n"

LINES = LINE * 3

CSV = "prompt,completion\nHello,Hi\n"


def make(folder: Path, name: str, content: Any) -> Path:
    """The file of a case."""
    if isinstance(content, Callable):
        return content(folder)
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def text(value: str) -> str:
    """One line of the format `text` whose JSON text is `value`."""
    return f'{{"text": {value}}}\n'


def zstd(data: bytes) -> bytes:
    with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def parquet(table: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), sink)
    return sink.getvalue()


def chat(*turns: dict[str, Any] | str, **columns: Any) -> list[dict[str, Any]]:
    """One row of messages; a text stands for a turn of that role."""
    return [{"messages": [{"role": t, "content": "Hello"} if isinstance(t, str) else t for t in turns], **columns}]


def bomb(path: Path) -> Path:
    """Some 70 MB of one line in 70 kB."""
    path.write_bytes(gzip.compress(b"x" * (70 * 2**20)))
    return path


ENCODINGS: dict[str, tuple] = {
    "a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode(), "note", "a byte-order mark (U+FEFF)"),
    "a mark in an array": ("a.json", b"\xef\xbb\xbf[" + LINE.encode() + b"]", "note", "a byte-order mark (U+FEFF)"),
    "a mark in a csv": ("a.csv", b"\xef\xbb\xbf" + CSV.encode(), "note", "a byte-order mark (U+FEFF)"),
    "a mark in the middle": ("a.jsonl", LINE + "\ufeff" + LINE, "note", "line 2 starts with a byte-order mark"),
    "utf-16": ("a.jsonl", LINES.encode("utf-16"), "error", "a.jsonl is UTF-16, not UTF-8"),
    "utf-16 big": ("a.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be"), "error", "iconv -f UTF-16 -t UTF-8"),
    "utf-16 little, no mark": ("a.jsonl", LINES.encode("utf-16-le"), "error", "iconv -f UTF-16LE -t UTF-8"),
    "utf-16 big, no mark": ("a.json", LINES.encode("utf-16-be"), "error", "iconv -f UTF-16BE -t UTF-8"),
    "utf-16 csv": ("a.csv", CSV.encode("utf-16"), "error", "a.csv is UTF-16, not UTF-8"),
    "utf-32": ("a.jsonl", LINES.encode("utf-32"), "error", "a.jsonl is UTF-32, not UTF-8"),
    "utf-32 big, no mark": ("a.jsonl", LINES.encode("utf-32-be"), "error", "iconv -f UTF-32BE -t UTF-8"),
    "utf-32 little, no mark": ("a.csv", CSV.encode("utf-32-le"), "error", "iconv -f UTF-32LE -t UTF-8"),
    "latin-1": (
        "a.jsonl",
        LINE.encode() + text('"café"').encode("latin-1"),
        "error",
        "line 2: is not UTF-8: byte 0xe9",
    ),
    "latin-1 array": ("a.json", b"[\n" + text('"caf\xe9"').encode("latin-1") + b"]", "error", "line 2 is not UTF-8"),
    "windows-1252 csv": ("a.csv", CSV.encode() + b"It\x92s,Hi\n", "error", "a.csv line 3: is not UTF-8: byte 0x92"),
    "half a character at the end": ("a.jsonl", LINES.encode() + b'{"text": "\xe2\x82', "error", "line 4: is not UTF-8"),
    "an overlong null": ("a.jsonl", b'{"text": "\xc0\x80"}', "error", "line 1: is not UTF-8: byte 0xc0"),
    "a surrogate as bytes": ("a.jsonl", b'{"text": "\xed\xa0\x80"}', "error", "line 1: is not UTF-8: byte 0xed"),
    "a lone surrogate": ("a.jsonl", text(r'"\ud83d"'), "error", r'line 1: "text" holds \ud83d, half a surrogate pair'),
    "a surrogate pair": ("a.jsonl", text(r'"\ud83d\ude00"'), "fine", 1),
    "a surrogate in a column": ("a.jsonl", '{"\\ud83d": 1}', "error", r"the columns \ud83d are of no known format"),
    "NUL bytes only": ("a.jsonl", bytes(4096), "error", "begins with NUL bytes only: it was not written completely"),
    "NUL bytes at the end": (
        "a.jsonl",
        LINES.encode() + bytes(512),
        "error",
        "line 4: has the character U+0000 outside",
    ),
    "a raw NUL in a string": ("a.jsonl", '{"text": "a\0b"}', "error", "has the control character U+0000 in a string"),
    "a raw tab in a string": ("a.jsonl", '{"text": "a\tb"}', "error", "has the control character U+0009 in a string"),
    "an escaped NUL": ("a.jsonl", text(r'"a\u0000b"'), "fine", 1),
    "control characters": ("a.jsonl", text(r'"\u001b[31m\u0007"'), "fine", 1),
    "bidi controls": ("a.jsonl", text('"\u202eevil\u2066"'), "fine", 1),
    "odd line separators": ("a.jsonl", text('"a\u2028b\u2029c\u0085d\x7f"'), "fine", 1),
    "private-use characters": ("a.jsonl", text('"\U0010fff0\ue000\ufffe"'), "fine", 1),
}

LINES_OF_JSON: dict[str, tuple] = {
    "a line break in a text": (
        "a.jsonl",
        '{"prompt": "a\nb", "completion": "c"}\n',
        "error",
        "inside a text is written \\n",
    ),
    "a key twice, far apart": (
        "a.jsonl",
        LINES + '{"prompt": "a", "completion" : "b", "prompt": 1}',
        "error",
        "stands twice",
    ),
    "windows line ends": ("a.jsonl", LINES.replace("\n", "\r\n"), "fine", 3),
    "mixed line ends": ("a.jsonl", LINE + LINE.strip() + "\r\n" + LINE, "fine", 3),
    "old mac line ends": ("a.jsonl", LINES.replace("\n", "\r"), "error", "ends its lines with \\r alone"),
    "no final line end": ("a.jsonl", LINES.strip(), "fine", 3),
    "blank lines between": ("a.jsonl", f"\n\n{LINE}\n \t\n{LINE}\n\n", "fine", 2),
    "empty": ("a.jsonl", "", "error", "a.jsonl is empty: it has no rows"),
    "only blank lines": ("a.jsonl", "\n \r\n\t\n", "error", "a.jsonl is empty: it has no rows"),
    "cut in a string": ("a.jsonl", LINES + LINE[:20], "error", "line 4: the JSON ends in the middle (column"),
    "cut behind a comma": ("a.jsonl", LINE + '{"prompt": "x",', "error", "line 2: the JSON ends in the middle"),
    "cut in a word": ("a.jsonl", LINE + '{"a": tru', "error", "line 2: is not JSON: Expecting value"),
    "an object over lines": (
        "a.jsonl",
        json.dumps(ROW, indent=1),
        "error",
        "a.jsonl is JSON over several lines, not JSON Lines",
    ),
    "two objects a line": ("a.jsonl", LINE.strip() + LINE, "error", "line 1: holds more than one object"),
    "commas between rows": ("a.jsonl", LINE.strip() + ",\n" + LINE, "error", "line 1: ends in a comma"),
    "an array named jsonl": ("a.jsonl", json.dumps([ROW, ROW]), "error", "is one JSON array, not JSON Lines"),
    "lines, then an array": (
        "a.jsonl",
        LINE + json.dumps([ROW]),
        "error",
        "line 2: is a list of 1; expected an object",
    ),
    "an array, then lines": ("a.json", json.dumps([ROW]) + "\n" + LINE, "error", "has text behind the end of its arr"),
    "an object, then an array": ("a.json", LINE + json.dumps([ROW]), "error", "mixes JSON Lines and an array"),
    "lines named json": ("a.json", LINES, "error", "these are JSON Lines"),
    "columns in an object": ("a.json", '{"prompt": {"0": "x"}, "completion": {"0": "y"}}', "error", 'orient="records"'),
    "rows under a key": ("a.json", '{"data": [{}]}', "error", "write only the list in 'data'"),
    "a comma before the end": ("a.json", f"[{LINE},]", "error", "has a comma before the ]"),
    "an array cut off": ("a.json", f"[{LINE},{LINE}", "error", "the array ends in the middle: it was cut off"),
    "an array cut in a row": ("a.json", f"[{LINE},{LINE[:10]}", "error", "line 2: the JSON ends in the middle"),
    "a text": ("a.json", '"hello"', "error", "is text ('hello') at the top level"),
    "null lines": ("a.jsonl", "null\n", "error", "line 1: is null; expected an object"),
    "a string of JSON": ("a.jsonl", json.dumps(LINE) + "\n", "error", "line 1: is text ("),
    "python": ("a.jsonl", str(ROW), "error", "line 1: is Python, not JSON"),
    "comments": ("a.jsonl", "// rows\n" + LINE, "error", "line 1: is not JSON: Expecting value"),
    "bare keys": ("a.jsonl", "{prompt: 1}", "error", "line 1: is not JSON: Expecting property name"),
    "a bad escape": ("a.jsonl", text(r'"C:\data"'), "error", r"double the backslashes, as in C:\\data"),
    "a duplicate key": (
        "a.jsonl",
        '{"text": "a", "text": "b"}',
        "error",
        "line 1: is ambiguous: the key 'text' stands",
    ),
    "a duplicate key inside": ("a.json", '[{"a": {"b": 1, "b": 2}}]', "error", "the key 'b' stands twice"),
    "NaN": ("a.jsonl", LINE + '{"prompt": "a", "completion": "b", "score": NaN}', "note", "line 2 holds NaN or Infini"),
    "NaN for text": ("a.jsonl", text("NaN"), "error", '"text" is a number (nan); expected text'),
    "Infinity": ("a.json", '[{"text": "a", "x": -Infinity}]', "note", "line 1 holds NaN or Infinity"),
    "a huge integer": ("a.jsonl", text('"a", "n": ' + "9" * 5000), "error", "a number has too many digits"),
    "a large integer for text": ("a.jsonl", text("9" * 4000), "error", '"text" is a number (of over 20 digits)'),
    "a number beyond floats": ("a.jsonl", text('"a", "n": 1e999'), "fine", 1),
    "deep brackets": ("a.jsonl", text("[" * 100_000), "error", "line 1: is not JSON: brackets are nested too deeply"),
    "deep braces": ("a.json", '[{"a":' + '{"a":' * 100_000, "error", "brackets are nested too deeply"),
    "csv named jsonl": ("a.jsonl", CSV, "error", "if the file is CSV, name it .csv"),
    "jsonl named csv": ("a.csv", LINES, "error", "holds JSON, not a table"),
    "a megabyte without spaces": ("a.jsonl", text(f'"{"x" * 2**20}"'), "fine", 1),
    "a row of 50 MB": ("a.jsonl", text(f'"{"word " * (10 * 2**20)}"'), "fine", 1),
    "a row of 65 MiB": ("a.jsonl", text(f'"{"word " * (13 * 2**20)}"'), "error", "line 1 begins a row of over 64 MiB"),
    "a csv row of 65 MiB": ("a.csv", 'text\n"' + "word\n" * (13 * 2**20), "error", "line 2 begins a record of over"),
    "many empty rows": ("a.jsonl", "{}\n" * 100_000, "error", "the columns (none) are of no known format"),
}

TABLES: dict[str, tuple] = {
    "a ragged row": ("a.csv", CSV + "1,2,3\n", "error", "a.csv line 3: has 3 fields; the header has 2"),
    "a short row": ("a.csv", CSV + "1\n", "error", "a.csv line 3: has 1 field; the header has 2"),
    "a quote left open": ("a.csv", CSV + 'x,"y\nz\n', "error", "line 3: is not a record: a quote is opened and never"),
    "text behind a quote": ("a.csv", CSV + 'x,"y"z\n', "error", "line 3: is not a record: ',' expected after '\"'"),
    "a quote within": ("a.csv", CSV + 'x,y "z"\n', "fine", 2),
    "semicolons": ("a.csv", CSV.replace(",", ";"), "error", "separates its columns with semicolons, not commas"),
    "tabs in a csv": ("a.csv", CSV.replace(",", "\t"), "error", "separates its columns with tabs, not commas"),
    "bars": ("a.csv", CSV.replace(",", "|"), "error", "separates its columns with bars, not commas"),
    "commas in a tsv": ("a.tsv", CSV, "error", "separates its columns with commas, not tabs"),
    "Excel's line": ("a.csv", "sep=,\n" + CSV, "error", "begins with 'sep='"),
    "only a header": ("a.csv", "prompt,completion\n", "error", "a.csv has no rows"),
    "no header": ("a.csv", "Hello,Hi\nBye,See you\n", "error", "the columns Hello, Hi are of no known format"),
    "a column twice": ("a.csv", "a,b,a\n1,2,3\n", "error", "names the column 'a' twice in its header"),
    "a column without a name": ("a.csv", ",prompt,completion\n0,Hello,Hi\n", "fine", 1),
    "columns in capitals": (
        "a.csv",
        "Prompt, Completion\na,b\n",
        "error",
        "{prompt: 'Prompt', completion: ' Completion'}",
    ),
    "blank lines in a csv": ("a.csv", CSV + "\n\nBye,See you\n", "fine", 2),
    "windows line ends in a csv": ("a.csv", CSV.replace("\n", "\r\n"), "fine", 1),
    "old mac line ends in a csv": ("a.csv", CSV.replace("\n", "\r"), "fine", 1),
    "an empty field": ("a.csv", "prompt,completion\nHello,\n", "fine", 1),
    "NUL in a csv": ("a.csv", "prompt,completion\nHello\0,Hi\n", "fine", 1),
    "no Parquet": ("a.parquet", b"PAR1 nothing of the kind", "error", "a.parquet is not a whole Parquet file"),
    "an empty Parquet": ("a.parquet", b"", "error", "a.parquet is empty"),
    "a cut Parquet": ("a.parquet", parquet([ROW] * 9)[:-30], "error", "a.parquet is not a whole Parquet file"),
    "a Parquet cut at its start": ("a.parquet", parquet([ROW] * 9)[40:], "error", "is not a whole Parquet file"),
    "Parquet without rows": (
        "a.parquet",
        parquet(pa.table({"text": pa.array([], pa.string())})),
        "error",
        "has no rows",
    ),
    "Parquet of nested types": ("a.parquet", parquet(chat(USER, ANSWER)), "fine", 1),
    "Parquet of bytes": ("a.parquet", parquet([{"text": b"Hello"}]), "error", "row 1: \"text\" is a bytes (b'Hello')"),
    "Parquet with a null": ("a.parquet", parquet([{"text": "a"}, {"text": None}]), "error", 'row 2: "text" is null'),
    "Parquet of fine times": (
        *("a.parquet", parquet(pa.table({"text": ["a"], "t": pa.array([1], pa.timestamp("ns"))}))),
        *("error", "holds a value Python cannot hold"),
    ),
    "Parquet of late times": (
        *("a.parquet", parquet(pa.table({"text": ["a"], "t": pa.array([2**62], pa.timestamp("us"))}))),
        *("error", "holds a value Python cannot hold"),
    ),
    "Parquet packed again": ("a.parquet.gz", gzip.compress(parquet([ROW])), "fine", 1),
    "Parquet packed by xz": ("a.parquet.xz", lzma.compress(parquet([ROW])), "fine", 1),
}

PACKED: dict[str, tuple] = {
    "gzip": ("a.jsonl.gz", gzip.compress(LINES.encode()), "fine", 3),
    "gzip in two parts": ("a.jsonl.gz", gzip.compress(LINES.encode()) * 2, "fine", 6),
    "bzip2": ("a.jsonl.bz2", bz2.compress(LINES.encode()), "fine", 3),
    "xz": ("a.csv.xz", lzma.compress(CSV.encode()), "fine", 1),
    "zstd": ("a.json.zst", zstd(json.dumps([ROW]).encode()), "fine", 1),
    "no gzip": ("a.jsonl.gz", LINES, "error", "is not a whole gzip file (incorrect header check"),
    "no bzip2": ("a.jsonl.bz2", LINES, "error", "is not a whole bzip2 file (Invalid data stream)"),
    "no xz": ("a.jsonl.xz", LINES, "error", "is not a whole xz file (Input format not supported"),
    "no zstd": ("a.jsonl.zst", LINES, "error", "is not a whole zstd file (ZSTD decompress failed"),
    "a cut gzip": ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:60], "error", "ends too early: it was cut off"),
    "a cut bzip2": ("a.jsonl.bz2", bz2.compress(LINES.encode() * 99)[:60], "error", "ends too early: it was cut off"),
    "a cut xz": ("a.jsonl.xz", lzma.compress(LINES.encode() * 99)[:60], "error", "ends too early: it was cut off"),
    "a cut zstd": ("a.jsonl.zst", zstd(LINES.encode() * 99)[:-9], "error", "a.jsonl.zst is not a whole zstd file"),
    "a bent gzip": (
        "a.jsonl.gz",
        gzip.compress(LINES.encode())[:-8] + bytes(8),
        "error",
        "whole gzip file (incorrect data check",
    ),
    "text behind gzip": ("a.jsonl.gz", gzip.compress(LINES.encode()) + b"x", "error", "behind its gzip data"),
    "an empty gzip": ("a.jsonl.gz", b"", "error", "a.jsonl.gz is empty"),
    "gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), "error", "a.jsonl.gz is empty"),
    "gzip named jsonl": ("a.jsonl", gzip.compress(LINES.encode()), "error", "is packed with gzip"),
    "zstd named json": ("a.json", zstd(b"[]"), "error", "is packed with zstd"),
    "packed twice": ("a.jsonl.gz", gzip.compress(gzip.compress(LINES.encode())), "error", "unpack it once"),
    "named twice": ("a.jsonl.gz.gz", gzip.compress(LINES.encode()), "error", "it is packed twice"),
    "a bomb": ("a.jsonl.gz", lambda folder: bomb(folder / "a.jsonl.gz"), "error", "begins a row of over 64 MiB"),
    "a bomb of blank lines": (
        "a.jsonl.xz",
        lzma.compress(b"\n" * (32 * 2**20)),
        "error",
        "has over 1,000,000 blank lin",
    ),
    "a pointer": ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "error", "is a Git LFS pointer"),
    "a web page": ("a.jsonl", "<!DOCTYPE html><html>", "error", "is a web page, not the file itself"),
    "a zip": ("a.csv", b"PK\x03\x04zip", "error", "is a zip archive or an Excel sheet"),
    "a Parquet named jsonl": ("a.jsonl", parquet([ROW]), "error", "is a Parquet file"),
    "an Arrow file": ("a.parquet", b"ARROW1\0\0", "error", "is an Arrow file"),
    "a pickle": ("a.jsonl", b"\x80\x04\x95\x10", "error", "is a Python pickle, which is never read"),
    "a sheet": ("a.xlsx", b"PK\x03\x04", "error", "the extension '.xlsx' of a.xlsx is not one of a file of rows"),
    "another name of JSON Lines": ("a.ndjson", LINES, "error", "its rows are JSON Lines: name it .jsonl"),
    "no extension": ("data", LINES, "error", "the extension '' of data"),
    "a capital extension": ("a.JSONL", LINES, "fine", 3),
}
