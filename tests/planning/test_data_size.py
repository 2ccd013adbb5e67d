"""How much a data file holds, without a tokenizer: rows, tokens, and the share that answers."""

from __future__ import annotations

import json

import pytest

from topcoat.planning.data_size import data_size

ASKED, ANSWERED = "a" * 300, "b" * 100
ROWS = {
    "messages": {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]},
    "alpaca": {"instruction": ASKED[:200], "input": ASKED[200:], "output": ANSWERED},
    "pairs": {"prompt": ASKED, "completion": ANSWERED},
}


def written(folder, row, times=8):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(times)))
    return data_size([str(file)])


@pytest.mark.parametrize("name", ROWS)
def test_the_share_of_answers_is_read_from_the_rows(name, tmp_path):
    size = written(tmp_path, ROWS[name])
    assert size.rows == 8
    assert size.labelled == 0.25
    assert 90 < size.mean_tokens < 125


def test_every_token_of_a_plain_text_counts(tmp_path):
    assert written(tmp_path, {"text": ASKED}).labelled == 1.0


@pytest.mark.parametrize("row", [{"question": ASKED, "label": 3}, [1, 2], "text", {"messages": "no list"}])
def test_rows_that_do_not_tell_leave_it_open(row, tmp_path):
    assert written(tmp_path, row).labelled is None
