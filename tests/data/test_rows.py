"""Reading files of rows: every kind gives the same rows, and what is wrong is said with file, line and field."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.data.rows import BadRows, read_rows
from topcoat.errors import TopcoatError

GOOD = [{"prompt": "Hello", "completion": "Hi"}, {"prompt": "2 + 2?", "completion": "4"}]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD)


def values(path) -> list[dict]:
    return [row.values for row in read_rows(path)]


def complaint(path) -> str:
    with pytest.raises(TopcoatError) as caught:
        read_rows(path)
    return str(caught.value)


@pytest.mark.needs_data
def test_every_file_kind_gives_the_same_rows(shared_data):
    files = sorted((shared_data / "formats").iterdir())
    assert len(files) == 6
    first = values(files[0])
    assert len(first) == 60
    assert all(values(file) == first for file in files)


@pytest.mark.needs_data
def test_lines_are_split_on_line_feeds_only(shared_data):
    rows = read_rows(shared_data / "alpaca_train.jsonl")
    assert (len(rows), rows[-1].line) == (2000, 2000)


@given(texts=st.lists(st.text(st.characters(blacklist_categories=("Cs",))), min_size=1, max_size=5))
def test_any_text_comes_back_from_a_json_line(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8", newline="")
    assert [row.values["text"] for row in read_rows(path)] == texts


def test_odd_line_separators_inside_strings_are_text(write):
    path = write("a.jsonl", '{"text": "a\u2028b\u2029c\u0085d\ufeffe"}\r\n\r\n{"text": "f"}')
    assert values(path) == [{"text": "a\u2028b\u2029c\u0085d\ufeffe"}, {"text": "f"}]
    assert [row.line for row in read_rows(path)] == [1, 3]


def test_a_byte_order_mark_is_accepted_and_said(write):
    notes: list[str] = []
    assert len(read_rows(write("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()), notes)) == 2
    assert notes == ["a.jsonl starts with a byte-order mark (U+FEFF); it was skipped"]


def test_compressed_files_are_read(write):
    assert values(write("a.jsonl.gz", gzip.compress(LINES.encode()))) == GOOD


def test_rows_of_a_json_array_know_their_lines(write):
    rows = read_rows(write("a.json", json.dumps(GOOD, indent=1)))
    assert [(row.values, row.line) for row in rows] == [(GOOD[0], 2), (GOOD[1], 6)]


def test_fields_of_a_csv_may_hold_separators_quotes_and_line_breaks(write):
    rows = read_rows(write("a.csv", 'prompt,completion\n"a, ""b""\nc",d\ne,f\n'))
    assert [(row.values["prompt"], row.line) for row in rows] == [('a, "b"\nc', 2), ("e", 4)]


def test_a_csv_field_may_be_long_and_the_csv_module_is_left_as_found(write):
    import csv

    before = csv.field_size_limit()
    assert len(values(write("a.csv", f"text\n{'x' * 200_000}\n"))[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


WRONG = {
    "empty": ("a.jsonl", "", "a.jsonl is empty: it has no rows"),
    "white space": ("a.jsonl", " \n\n", "is empty"),
    "only a mark": ("a.jsonl", b"\xef\xbb\xbf\n", "is empty"),
    "empty array": ("a.json", "[]", "a.json has no rows"),
    "only a header": ("a.csv", "prompt,completion\n", "a.csv has no rows"),
    "truncated line": ("a.jsonl", LINES + '{"prompt": "Hel', "a.jsonl line 3: the JSON ends in the middle (column 12)"),
    "truncated object": ("a.jsonl", '{"prompt": "Hello",', "line 1: the JSON ends in the middle"),
    "stray comma": ("a.jsonl", '{"a": 1,, "b": 2}', "a.jsonl line 1: is not JSON: Expecting property name"),
    "python": ("a.jsonl", "{'prompt': 'Hello'}", "line 1: is Python, not JSON"),
    "a list a line": ("a.jsonl", LINES + "[1, 2]", "a.jsonl line 3: is a list of 2; expected an object"),
    "a text a line": ("a.jsonl", LINES + '"hello"', "a.jsonl line 3: is text ('hello'); expected an object"),
    "array named jsonl": ("a.jsonl", json.dumps(GOOD), "is one JSON array, not JSON Lines"),
    "array over lines": ("a.jsonl", json.dumps(GOOD, indent=1), "is one JSON array over several lines"),
    "lines named json": ("a.json", LINES, "these are JSON Lines"),
    "object at the top": ("a.json", '{"data": [{}]}', "is an object with data at the top level; expected a list"),
    "number at the top": ("a.json", "17", "is a number (17) at the top level; expected a list of objects"),
    "broken top": ("a.json", '{"a": tru', "a.json line 1 is not JSON"),
    "truncated array": ("a.json", '[{"a": 1},\n {"a": 2}', "a.json line 2: the array ends in the middle"),
    "truncated item": ("a.json", '[{"a": 1},\n {"a": ', "a.json line 2: the JSON ends in the middle"),
    "missing comma": ("a.json", '[{"a": 1}\n{"a": 2}]', "a.json line 2: expected a comma or ]"),
    "text behind": ("a.json", "[{}]]", "has text behind the end of its array"),
    "number in array": ("a.json", '[{"a": 1},\n17]', "a.json line 2: is a number (17); expected an object"),
    "utf-16": ("a.jsonl", LINES.encode("utf-16"), "a.jsonl is UTF-16, not UTF-8"),
    "utf-16 without mark": ("a.jsonl", LINES.encode("utf-16-le"), "a.jsonl is UTF-16, not UTF-8"),
    "latin-1": (
        "a.jsonl",
        LINES.encode() + b'{"prompt": "caf\xe9"}',
        "a.jsonl line 3: is not UTF-8: byte 0xe9 at byte 16 of the line",
    ),
    "latin-1 csv": ("a.csv", b"text\ncaf\xe9\n", "a.csv line 2: is not UTF-8: byte 0xe9"),
    "not gzip": ("a.jsonl.gz", LINES, "a.jsonl.gz is not a whole gzip file"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:60], "ends too early"),
    "bent gzip": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-8] + b"\0" * 8, "(incorrect data check"),
    "not parquet": ("a.parquet", b"PAR1 nothing of the kind", "a.parquet is not a whole Parquet file"),
    "ragged csv": ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv line 3: has 3 fields; the header has 2 (a, b)"),
    "short csv": ("a.csv", "a,b\n1\n", "a.csv line 2: has 1 field; the header has 2"),
    "open quote": ("a.csv", 'a,b\n1,"2\n', "a.csv line 2: is not a record: a quote is opened and never closed"),
    "same column": ("a.tsv", "a\ta\n1\t2\n", "a.tsv names the column 'a' twice"),
    "unknown kind": ("a.xlsx", b"PK", "the extension '.xlsx' of a.xlsx is not one of a file of rows"),
    "a binary called text": ("a.txt", "Hello\0", "holds NUL bytes (first at byte 5)"),
    "text in Latin-1": ("a.md", "caf\u00e9".encode("latin-1"), "is not UTF-8: byte 0xe9 in line 1"),
    "blank text": ("a.txt", " \n\n", "holds nothing but white space"),
    "no extension": ("data", "Hello", "the extension '' of data"),
    "gz of nothing": ("a.gz", gzip.compress(b"x"), "the extension '' of a.gz"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_saying_what_is_wrong(write, case):
    name, content, expected = WRONG[case]
    assert expected in complaint(write(name, content))


def test_a_cut_parquet_file_is_refused(write, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "whole.parquet")
    assert values(tmp_path / "whole.parquet") == GOOD
    cut = write("cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    assert "cut.parquet is not a whole Parquet file" in complaint(cut)


def test_a_missing_file_is_refused_with_near_names(write):
    near = Path(write("train.jsonl", LINES))
    assert "train.jsonl" in complaint(near.with_name("trian.jsonl"))
    assert f"in {near.parent} there is train.jsonl" in complaint(near.with_name("train.json"))
    assert f"in {near.parent} there is train.jsonl" in complaint(near.with_name("zzz.csv"))
    assert f"the folder {near.parent / 'no'} is not there either" in complaint(near.parent / "no" / "train.jsonl")
    assert "no data file is in" in complaint(_made(near.parent / "void") / "a.csv")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_folder_is_refused_with_the_files_in_it(write):
    folder = Path(write("train.jsonl", LINES)).parent
    assert re.search(r"is a folder; expected one file of rows; it holds train\.jsonl", complaint(folder))


def test_a_file_that_may_not_be_read_is_refused(write, monkeypatch):
    path = write("a.jsonl", LINES)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "a.jsonl cannot be read: Permission denied" in complaint(path)


def test_all_bad_rows_are_said_at_once_but_only_the_first_twenty_shown(write):
    text = complaint(write("a.jsonl", "{}\n" + "oops\n" * 33))
    assert text.count("is not JSON") == 20
    assert "a.jsonl line 21: is not JSON" in text
    assert text.endswith("and 13 more bad rows (33 in all)")


def test_line_numbers_are_readable():
    bad = BadRows()
    bad.add("train.jsonl line 4,812", '"content" is a number (17); expected text')
    with pytest.raises(TopcoatError, match=r'^train\.jsonl line 4,812: "content" is a number \(17\); expected text$'):
        bad.raise_if_any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": ' + "[" * 200_000 + "]" * 200_000 + "}", "brackets are nested too deeply"),
        ('{"text": "a", "id": ' + "1" * 5_000 + "}", "a number has too many digits"),
    ],
    ids=["nesting", "digits"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_beyond_what_python_reads_is_said_with_its_line(tmp_path, text, said, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text(text if suffix == ".jsonl" else f"[{text}]")
    with pytest.raises(TopcoatError, match=rf"line 1: is not JSON: {said}"):
        read_rows(str(path))
