"""Broken data files as `train` and `data check` load them: each is refused with its file, row and cause, never more.

The kinds are those of test_bad_files.py. Rows that a fast path would take are put around the one that is wrong.
"""

from __future__ import annotations

import json

import pytest
from bad_containers import CONTAINERS, DEEP
from bad_files import ENCODINGS, LINES_OF_JSON, PACKED, TABLES, make
from bad_rows import PATHS, ROWS
from feed_rows import rows

from topcoat.data.checks.files import check_files
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError

TABLES_OF_KINDS = (ENCODINGS, LINES_OF_JSON, TABLES, PACKED, CONTAINERS, PATHS, ROWS)
CASES = {name: case for table in TABLES_OF_KINDS for name, case in table.items()}
REFUSED = [name for name, case in CASES.items() if case[2] == "error"]
LARGE = [name for name in REFUSED if any(word in name for word in ("GiB", "MiB", "MB", "bomb", "terabyte"))]
PAIRS = ["a pair", "a pair's fix", "labelled answers"]  # rows that `data check` reads, and this objective does not


@pytest.mark.parametrize("case", [name for name in REFUSED if name not in LARGE + PAIRS][::4])
def test_what_is_refused_is_refused_in_the_same_words_by_train_and_check(tmp_path, load, case):
    name, content, _, words = CASES[case]
    path = str(make(tmp_path, name, content))
    with pytest.raises(TopcoatError) as caught:
        load(path)
    assert words in str(caught.value)
    assert name in str(caught.value)
    with pytest.raises(TopcoatError) as checked:
        check_files(DataSettings(train=path, validation=None))
    assert words in str(checked.value)


@pytest.mark.parametrize("levels", [65, 900])
@pytest.mark.parametrize("around", [0, 40, 4000])
def test_a_row_that_is_nested_too_deeply_is_refused_wherever_it_stands(write, load, around, levels):
    deep = DEEP.replace("[" * 900 + "]" * 900, "[" * levels + "]" * levels)
    lines = [json.dumps(row) + "\n" for row in rows(max(around, 1))]
    path = write("a.jsonl", "".join([*lines, deep, *lines]))
    words = f'a.jsonl line {len(lines) + 1:,}: "x" is nested more than 64 levels deep'
    with pytest.raises(TopcoatError) as caught:
        load(path)
    assert words in str(caught.value)
    assert "write it flatter, or leave that field out of the file" in str(caught.value)
    with pytest.raises(TopcoatError, match="is nested more than 64 levels deep"):
        check_files(DataSettings(train=path, validation=None))
