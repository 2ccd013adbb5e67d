"""Kinds of broken data files that exist in the wild: each is refused, told about, or read on purpose; none is silent.

A case is (file name, content, outcome, words). `content` is bytes, text, rows, or a function of the folder that returns
the path. "error": refused, and the message has the words. "note": read, and a note has them. "fine": read, and that is
right; the words then say how many rows came back. None takes over two seconds.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bad_containers import CONTAINERS
from bad_files import ENCODINGS, LINE, LINES, LINES_OF_JSON, PACKED, TABLES, make
from bad_rows import PATHS, ROWS

from topcoat.data import opening
from topcoat.data.lines import KINDS, PACKINGS
from topcoat.data.readers import READERS
from topcoat.data.row_formats import to_conversations
from topcoat.data.rows import iter_rows, read_rows
from topcoat.errors import TopcoatError

CASES = ENCODINGS | LINES_OF_JSON | TABLES | PACKED | CONTAINERS | PATHS | ROWS


def test_the_table_is_as_long_as_the_kinds_are_many():
    parts = (ENCODINGS, LINES_OF_JSON, TABLES, PACKED, CONTAINERS, PATHS, ROWS)
    assert len(CASES) == sum(map(len, parts)) >= 150


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_refused_or_told_about_or_read_on_purpose(tmp_path, case):
    name, content, outcome, words = CASES[case]
    path = make(tmp_path, name, content)
    notes: list[str] = []
    start = time.process_time()
    try:
        _, conversations = to_conversations(read_rows(path, notes), "auto", {}, notes)
        said, found = "\n".join(notes), "note" if notes else "fine"
    except TopcoatError as error:
        said, found = str(error), "error"
    assert time.process_time() - start < 2
    assert found == outcome, said
    if outcome == "fine":
        assert len(conversations) == words
        return
    assert words in said
    assert name in said
    said.encode()  # it can be printed
    assert not any(ord(character) < 32 and character != "\n" for character in said)


def test_a_file_that_unpacks_to_hundreds_of_times_its_size_is_taken_for_a_bomb(write, monkeypatch):
    monkeypatch.setattr(opening, "BOMB_BYTES", 2**20)
    path = write("a.json.xz", lzma.compress(b"[" + b" " * (8 * 2**20) + b"]"))
    with pytest.raises(TopcoatError, match="unpacks to over 500 times its size: it is taken for a bomb"):
        read_rows(path)


def test_every_kind_and_packing_that_is_named_is_read():
    assert set(READERS) == set(KINDS)
    assert set(opening.PACKED) == set(PACKINGS)


def test_a_file_that_changes_while_it_is_read_is_refused(write):
    path = write("a.jsonl", LINES)
    rows = iter_rows(path)
    next(rows)
    with open(path, "a") as file:
        file.write(LINE)
    with pytest.raises(TopcoatError, match=r"a\.jsonl was changed while it was read \(.* bytes, now .*\)"):
        list(rows)


def test_a_pipe_put_in_the_place_of_a_file_is_not_waited_for(write, monkeypatch):
    path = Path(write("a.jsonl", LINES))
    kind = opening.kind_of

    def swap(*args: Any) -> tuple[str, str]:
        found = kind(*args)
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr("topcoat.data.rows.kind_of", swap)
    with pytest.raises(TopcoatError, match="is empty"):
        read_rows(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_and_a_folder_that_may_not_be_read_are_refused(write):
    path = Path(write("a.jsonl", LINES))
    path.chmod(0)
    with pytest.raises(TopcoatError, match="cannot be read: Permission denied"):
        read_rows(path)
    path.parent.chmod(0)
    try:
        with pytest.raises(TopcoatError, match="cannot be reached: permission is denied"):
            read_rows(path)
    finally:
        path.parent.chmod(0o755)


def test_a_bad_row_ends_the_rows_and_the_rest_is_read_for_more(write):
    rows = iter_rows(write("a.jsonl", LINE + "oops\n" + LINE + "{\n"))
    assert next(rows).line == 1
    with pytest.raises(TopcoatError) as caught:
        next(rows)
    assert [f"line {n}" in str(caught.value) for n in (2, 3, 4)] == [True, False, True]


MEMORY = """
import resource, sys
from topcoat.data.rows import iter_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(1 for _ in iter_rows(sys.argv[1])) == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv"])
def test_rows_are_read_in_the_memory_of_a_few(tmp_path, name):
    row, n = json.dumps({"text": "word " * 400}) + "\n", 20_000  # 40 MB
    data = {"a.json": "[" + ",".join([row] * n) + "]", "a.csv": "text\n" + ("word " * 400 + "\n") * n}.get(
        name, row * n
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(data.encode(), 1) if name.endswith(".gz") else data.encode())
    command = [sys.executable, "-c", MEMORY, str(path), str(n)]
    kilobytes = int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert kilobytes < 16 * 1024
