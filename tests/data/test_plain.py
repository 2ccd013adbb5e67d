"""Plain text: a file is a document, long ones become windows that lose no token, and one document can be held out."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.data.load import load_data
from topcoat.data.overlong import shorten
from topcoat.data.render import Example
from topcoat.data.rows import Row, read_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError

TEXT = "The first line.\n\nThe second, with a café.\n" * 30


@pytest.fixture
def load(write, chatml):
    def load_rows(data, context_length=512, name="train.jsonl", **settings):
        path = data if isinstance(data, str) and data.startswith("/") else write(name, data)
        keywords = {"context_length": context_length, "seed": 1, "objective": "completion"}
        return load_data(DataSettings(train=path, **{"overlong": "split"} | settings), chatml.tokenizer, **keywords)

    return load_rows


def whole(tokenizer, text: str) -> list[int]:
    """A document's tokens: what the tokenizer makes of it, and its end."""
    return [*tokenizer(text).input_ids, tokenizer.eos_token_id]


# Files


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
def test_a_file_of_text_is_one_document(write, name):
    [row] = read_rows(write(name, TEXT))
    assert row.values == {"text": TEXT}
    assert row.place == name


def test_a_packed_text_is_read(write):
    [row] = read_rows(write("a.txt.gz", gzip.compress(TEXT.encode())))
    assert row.values["text"] == TEXT


@pytest.mark.parametrize("text", ["ORCHARDS bloom.", "BZhang wrote this.", "PAR1 is a course.", "<!-- a comment -->"])
def test_words_that_look_like_a_file_s_mark_are_words(write, text):
    assert read_rows(write("a.md", text))[0].values["text"] == text


def test_line_ends_of_windows_and_a_byte_order_mark_are_noted(write):
    notes: list[str] = []
    [row] = read_rows(write("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"), notes)
    assert row.values["text"] == "one\ntwo\n"
    assert notes == [
        "a.txt starts with a byte-order mark (U+FEFF); it was skipped",
        "a.txt ends 2 lines as Windows does; they were read as \\n",
    ]


# Windows


def test_every_token_of_a_document_is_predicted_once_and_its_end_stands_behind_it(load, chatml):
    data = load(TEXT, name="a.txt", max_length=50, validation=None)
    ids = whole(chatml.tokenizer, TEXT)
    windows = [example.input_ids for example in data.train]
    assert len(windows) > 5
    assert all(len(window) <= 50 for window in windows)
    predicted = [token for window in windows for token in window[1:]]
    assert predicted == ids[1:]
    assert all(later[0] == window[-1] for window, later in pairwise(windows))
    assert data.train.targets.sum() == len(ids) - 1
    assert any("so no token goes untrained" in note for note in data.report.notes)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(8, 20))
def test_however_long_a_text_is_its_windows_predict_each_token_once(n, most):
    example = Example(list(range(n)), list(range(n)), Row({}, "a.txt", 1))
    if n <= most:
        return
    windows = [part.input_ids for part in shorten(example, most, "windows")]
    assert [token for window in windows for token in window[1:]] == list(range(1, n))
    assert all(2 <= len(window) <= most for window in windows)


def test_windows_of_a_view_are_those_of_a_single_row(load):
    data = load([{"text": TEXT}, {"text": "short"}], max_length=64, validation=None)
    first = data.train.uncut(0)
    found = [e.input_ids for e in data.train if e.row.line == 1]
    assert found == [part.input_ids for part in shorten(first, 64, "windows")]


def test_documents_do_not_run_into_each_other(load, chatml):
    rows = [{"text": f"Document {i}."} for i in range(6)]
    data = load(rows, validation=None)
    assert [e.input_ids for e in data.train] == [whole(chatml.tokenizer, row["text"]) for row in rows]


def test_without_a_length_windows_are_of_2048_tokens_at_most(load):
    assert load(TEXT * 40, name="a.txt", context_length=100_000, validation=None).max_length == 2048


def test_the_end_of_a_single_document_is_held_out(load, chatml):
    data = load(TEXT, name="a.txt", max_length=50, validation=0.2)
    n = len(data.train) + len(data.validation)
    assert len(data.validation) == round(0.2 * n)
    assert any(f"its last {len(data.validation)} of {n} windows are held out" in note for note in data.report.notes)
    assert not data.report.events["leaked"]
    assert data.validation[-1].input_ids[-1] == chatml.tokenizer.eos_token_id


def test_a_document_of_one_window_cannot_be_divided(load):
    with pytest.raises(TopcoatError, match="one text of one window cannot be divided"):
        load("Short.", name="a.txt")


def test_a_long_text_is_still_refused_where_the_recipe_says_so(load):
    with pytest.raises(TopcoatError, match="exceeds 50 tokens"):
        load(TEXT, name="a.txt", max_length=50, overlong="error", validation=None)


def test_rows_of_chats_are_named_for_what_they_are(load):
    rows = [{"instruction": "Say it.", "input": "", "output": "it"}] * 2
    with pytest.raises(TopcoatError) as caught:
        load(rows)
    assert 'there is no "text": these rows are alpaca' in str(caught.value)
    assert "train.objective: sft" in str(caught.value)
