"""Files of another kind than their name says, archives, and what stands around or behind good rows. As bad_files.py."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
from bad_files import ANSWER, LINE, LINES, ROW, USER, chat, parquet, zstd

DATA = LINES.encode()


def tar(mode: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(DATA)
        archive.addfile(entry, io.BytesIO(DATA))
    return held.getvalue()


def arrow_stream() -> bytes:
    table, held = pa.table({"text": ["a"]}), io.BytesIO()
    with pa.ipc.new_stream(held, table.schema) as writer:
        writer.write_table(table)
    return held.getvalue()


def filled_up(folder: Path, name: str, data: bytes, size: int) -> Path:
    """`data`, then zeros up to `size` that take no room on the disk."""
    with open(folder / name, "wb") as file:
        file.write(data)
        file.truncate(size)
    return folder / name


def link(folder: Path, name: str, to: str) -> Path:
    (folder / name).symlink_to(to)
    return folder / name


def bent(data: bytes) -> bytes:
    """Thirty bytes of the first page turned over."""
    return data[:30] + bytes(byte ^ 255 for byte in data[30:60]) + data[60:]


def column(values: pa.Array) -> bytes:
    return parquet(pa.table({"prompt": ["a"] * len(values), "completion": values}))


def nested(levels: int) -> bytes:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return parquet(pa.table({"prompt": ["a"], "completion": ["b"], "x": [value]}))


NOT_UTF8 = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
DEEP = '{"prompt": "a", "completion": "b", "x": ' + "[" * 900 + "]" * 900 + "}\n"

CONTAINERS: dict[str, tuple] = {
    "gzip named bz2": ("a.jsonl.bz2", gzip.compress(DATA), "error", "is packed with gzip"),
    "bzip2 named gz": ("a.jsonl.gz", bz2.compress(DATA), "error", "name it a.jsonl.bz2"),
    "zstd named gz": ("a.jsonl.gz", zstd(DATA), "error", "name it a.jsonl.zst"),
    "bzip2 in two parts": ("a.jsonl.bz2", bz2.compress(DATA) * 2, "fine", 6),
    "xz in two parts": ("a.jsonl.xz", lzma.compress(DATA) * 2, "fine", 6),
    "zstd in two parts": ("a.jsonl.zst", zstd(DATA) * 2, "fine", 6),
    "the older lzma": ("a.jsonl.xz", lzma.compress(DATA, format=lzma.FORMAT_ALONE), "fine", 3),
    "gzip filled up with zeros": ("a.jsonl.gz", gzip.compress(DATA) + bytes(512), "fine", 3),
    "xz filled up with zeros": ("a.jsonl.xz", lzma.compress(DATA) + bytes(512), "fine", 3),
    "text behind bzip2": ("a.jsonl.bz2", bz2.compress(DATA) + b"x", "error", "behind its bzip2 data that is no bzip2"),
    "text behind xz": ("a.jsonl.xz", lzma.compress(DATA) + b"text", "error", "behind its xz data that is no xz"),
    "a second gzip cut off": ("a.jsonl.gz", gzip.compress(DATA) + gzip.compress(DATA)[:20], "error", "was cut off"),
    "a second bzip2 damaged": (
        *("a.jsonl.bz2", bz2.compress(DATA) + bz2.compress(DATA)[:20] + bytes(40)),
        *("error", "a.jsonl.bz2 is not a whole bzip2 file"),
    ),
    "64 GiB of zeros behind gzip": (
        *("a.jsonl.gz", lambda f: filled_up(f, "a.jsonl.gz", gzip.compress(DATA), 2**36)),
        *("error", "has something behind its gzip data"),
    ),
    "64 GiB of zeros behind rows": (
        *("a.jsonl", lambda f: filled_up(f, "a.jsonl", DATA, 2**36)),
        *("error", "line 4 begins a row of over 64 MiB"),
    ),
    "a terabyte of zeros": (
        "a.csv",
        lambda f: filled_up(f, "a.csv", b"", 2**40),
        "error",
        "begins with NUL bytes only",
    ),
    "tar named jsonl": ("a.jsonl", tar("w"), "error", "a.jsonl is a tar archive"),
    "tar.gz named jsonl.gz": ("a.jsonl.gz", tar("w:gz"), "error", "a.jsonl.gz holds, unpacked, a tar archive"),
    "tar.gz": ("a.tar.gz", tar("w:gz"), "error", "it is an archive: unpack it"),
    "an empty zip": ("a.csv", b"PK\x05\x06" + bytes(18), "error", "is an empty zip archive"),
    "rar": ("a.jsonl", b"Rar!\x1a\x07\x00", "error", "is a rar archive"),
    "lz4": ("a.jsonl", bytes(pa.Codec("lz4").compress(DATA, asbytes=True)), "error", "is packed with lz4"),
    "zlib": ("a.jsonl", zlib.compress(DATA), "error", "is packed with zlib"),
    "an Arrow stream": ("a.jsonl", arrow_stream(), "error", "is an Arrow stream"),
    "an Arrow stream named parquet": ("a.parquet", arrow_stream(), "error", "is an Arrow stream"),
    "Avro": ("a.jsonl", b"Obj\x01\x04\x14avro.codec\x08null" + bytes(40), "error", "is an Avro file"),
    "numbers": ("a.jsonl", struct.pack("<8I", *range(8)), "error", "holds numbers, not text: it is a binary file"),
    "safetensors": ("a.jsonl", struct.pack("<Q", 2) + b"{}", "error", "holds numbers, not text"),
    "an older pickle": ("a.jsonl", b"\x80\x02}q\x00.", "error", "is a Python pickle, which is never read"),
    "encrypted Parquet": ("a.parquet", b"PARE" + parquet([ROW])[4:-4] + b"PARE", "error", "is an encrypted Parquet"),
    "the head of a web page": ("a.jsonl", "<head><title>x</title></head>", "error", "is a web page"),
    "a merge conflict": ("a.jsonl", LINE + "<<<<<<< HEAD\n" + LINE, "error", "line 2: is a mark of a merge conflict"),
    "a form feed": ("a.jsonl", LINE + "\x0c\n", "error", "line 2: has the character U+000C outside of its strings"),
    "NUL between rows": ("a.jsonl", LINE + "\0\0\n" + LINE, "error", "line 2: has the character U+0000 outside"),
    "Ctrl-Z at the end": ("a.jsonl", LINE + "\x1a", "error", "line 2: has the character U+001A outside of its strings"),
    "record separators": ("a.jsonl", "\x1e" + LINE, "error", "line 1: has the character U+001E outside"),
    "JSON twice over": ("a.jsonl", json.dumps(json.dumps(ROW)) + "\n", "error", "json.dumps was called twice"),
    "brackets 900 deep": ("a.jsonl", LINE + DEEP, "error", 'line 2: "x" is nested more than 64 levels deep'),
    "brackets 900 deep in an array": ("a.json", f"[{DEEP}]", "error", '"x" is nested more than 64 levels deep'),
    "brackets 64 deep": ("a.jsonl", DEEP.replace("[" * 900 + "]" * 900, "[" * 64 + "]" * 64), "fine", 1),
    "tools 900 deep": (
        *("a.jsonl", [{**chat(USER, ANSWER)[0], "tools": '[{"name":"f","x":' + "[" * 900 + "]" * 900 + "}]"}]),
        *("error", 'line 1: "tools" is nested more than 64 levels deep'),
    ),
    "Parquet 70 deep": ("a.parquet", nested(70), "error", "schema too deeply nested"),
    "columns as lists": ("a.json", json.dumps({"prompt": ["a"], "completion": ["b"]}), "error", "it holds columns"),
    "rows by name": ("a.json", json.dumps({"x": ROW, "y": ROW}), "error", "write only its values, in a list"),
    "a very wide csv": (
        *("a.csv", ",".join(f"c{i}" for i in range(50_000)) + "\n" + ",".join("1" * 50_000)),
        *("error", "c7 and 49,992 more are of no known format"),
    ),
    "a very wide csv with a name twice": (
        *("a.csv", ",".join(f"c{i}" for i in [*range(50_000), 7]) + "\n"),
        *("error", "names the column 'c7' twice"),
    ),
    "a quote in a tsv": ("a.tsv", 'prompt\tcompletion\n"a" b\tc\n', "error", "'a tab' expected after"),
    "Parquet names that are no UTF-8": (
        *("a.parquet", parquet([ROW] * 3).replace(b"prompt", b"\xffrompt")),
        *("error", "a.parquet has a column whose name is not UTF-8: byte 0xff"),
    ),
    "Parquet that is no UTF-8": ("a.parquet", column(NOT_UTF8), "error", "row 1: 'completion' holds a value Python"),
    "Parquet of fine durations": (
        *("a.parquet", column(pa.array([1, 5], pa.duration("ns")))),
        *("error", "row 1: 'completion' holds a value Python cannot hold"),
    ),
    "Parquet bent in a page": (
        *("a.parquet", bent(parquet([ROW] * 99))),
        *("error", "is not a whole Parquet file"),
    ),
    "a loop of two links": (
        *("", lambda f: (link(f, "a.jsonl", "b.jsonl"), link(f, "b.jsonl", "a.jsonl"))[0]),
        *("error", "leads back to itself"),
    ),
    "a link to a device": (
        *("", lambda f: link(f, "a.jsonl", "/dev/zero")),
        *("error", "is a device; expected a file of rows"),
    ),
    "a turn not to be trained": (
        *("a.jsonl", chat(USER, {**ANSWER, "train": False})),
        *("error", 'message 2: "train" is not supported: it would leave the turn untrained'),
    ),
    "a turn without loss": ("a.jsonl", chat(USER, {**ANSWER, "loss": 0}), "error", '"loss" is not supported'),
    "a turn to be trained": ("a.jsonl", chat(USER, {**ANSWER, "loss": True, "weight": 1}), "fine", 1),
}
