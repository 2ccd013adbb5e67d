"""load_data: held-out rows, lengths, and the checks that something is trained, can end, and has an embedding."""

from __future__ import annotations

import json
import random
import re
import time

import numpy as np
import pytest
from rich.console import Console

from topcoat.data.conversation import Conversation
from topcoat.data.encode import content_digest
from topcoat.data.load import hold_out, load_data
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.settings import DataSettings
from topcoat.errors import Refused, TopcoatError


def rows(n: int, words: int = 3) -> list[dict]:
    return [{"prompt": f"Question {i}?", "completion": " ".join([f"w{i}"] * words)} for i in range(n)]


@pytest.fixture
def load(write, chatml):
    """load(rows, setting=...) -> Dataset, by the ChatML tokenizer, with a context of 512 tokens."""

    def load_rows(data, context_length=512, vocab_rows=None, seed=1, **settings):
        path = data if isinstance(data, str) else write("train.jsonl", data)
        keywords = {"context_length": context_length, "seed": seed, "vocab_rows": vocab_rows}
        return load_data(DataSettings(train=path, **settings), chatml.tokenizer, **keywords)

    return load_rows


def numbers(examples) -> list[int]:
    return [example.row.line for example in examples]


# Held-out rows


def test_a_share_of_the_rows_is_held_out(load):
    data = load(rows(40), validation=0.25)
    assert (len(data.train), len(data.validation)) == (30, 10)
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(1, 41))
    assert numbers(data.train) == sorted(numbers(data.train))


def test_at_least_one_row_is_held_out_and_one_left(load):
    assert len(load(rows(3), validation=0.01).validation) == 1
    assert len(load(rows(2), validation=0.99).train) == 1
    with pytest.raises(TopcoatError, match="one row cannot be divided into training and validation rows"):
        load(rows(1), validation=0.5)
    assert len(load(rows(1), validation=None).validation) == 0


def held_out(texts: list[str], seed: int) -> set[str]:
    contents = np.array([content_digest(Conversation(text=text)) for text in texts], np.uint64)
    return {text for text, held in zip(texts, hold_out(contents, 0.1, seed), strict=True) if held}


def test_the_held_out_rows_follow_from_the_seed_and_the_rows_not_their_order():
    texts = [str(i) for i in range(200)]
    held = held_out(texts, 7)
    assert len(held) == 20
    assert held_out(random.Random(0).sample(texts, len(texts)), 7) == held
    assert held_out(texts, 8) != held
    assert len(held_out([*texts, "another"], 7) & held) >= 19


def test_equal_rows_are_held_out_together():
    contents = np.array([content_digest(Conversation(text=str(i % 10))) for i in range(100)], np.uint64)
    held = hold_out(contents, 0.1, 3)
    assert set(contents[held]).isdisjoint(contents[~held])


def test_a_validation_file_is_read_and_its_copies_of_training_rows_are_counted(load, write):
    data = load(rows(5), validation=write("held.jsonl", [rows(9)[8], rows(9)[2]]))
    assert [example.row.place for example in data.validation] == ["held.jsonl line 1", "held.jsonl line 2"]
    assert data.report.events["leaked"] == ["held.jsonl line 2"]
    warning = "1 rows: validation rows that are also training rows (first: held.jsonl line 2)"
    assert warning in data.report.warnings()


# Lengths

LONG = [*rows(8), {"prompt": "Long?", "completion": "word " * 60}]


def test_auto_is_the_longest_example_or_the_context(load):
    data = load(LONG, validation=None)
    assert data.max_length == data.report.longest == max(len(e.input_ids) for e in data.train)
    assert data.report.longest_row == "train.jsonl line 9"
    assert load(LONG, validation=None, context_length=40, overlong="drop").max_length == 40


def test_overlong_rows_stop_the_run_saying_which_and_what_to_set(load):
    with pytest.raises(TopcoatError) as caught:
        load(LONG, validation=None, max_length=64)
    need = load(LONG, validation=None).max_length
    assert str(caught.value).startswith("1 of 9 examples exceeds 64 tokens")
    assert re.search(r"would lose \d+ % of all answer tokens \(first: train\.jsonl line 9, ", str(caught.value))
    assert f"set data.max_length: {need}, or set data.overlong: drop, truncate or split" in str(caught.value)
    with pytest.raises(TopcoatError, match=r"set data\.overlong: drop, truncate or split \(the model's context is 64"):
        load(LONG, validation=None, context_length=64)


def test_a_text_with_one_label_is_not_told_to_split(write, chatml):
    path = write("a.jsonl", [{"text": "word " * 200, "label": name} for name in ("a", "b")])
    settings = DataSettings(train=path, validation=None, max_length=64)
    with pytest.raises(TopcoatError, match=r"set data\.max_length: \d+, or set data\.overlong: drop or truncate$"):
        load_data(settings, chatml.tokenizer, context_length=4096, seed=1, objective="classification")


def test_a_limit_beyond_the_models_context_is_refused(load):
    with pytest.raises(TopcoatError, match=r"data\.max_length is 1,024, but the model's context is 512 tokens"):
        load(rows(3), max_length=1024)


def test_overlong_rows_may_be_dropped(load):
    data = load(LONG, validation=None, max_length=64, overlong="drop")
    assert numbers(data.train) == list(range(1, 9))
    assert data.report.events["dropped_overlong"] == ["train.jsonl line 9"]


def test_overlong_rows_may_be_truncated(load):
    whole = load(LONG, validation=None).train[-1]
    data = load(LONG, validation=None, max_length=64, overlong="truncate")
    last = data.train[-1]
    assert (last.input_ids, last.labels) == (whole.input_ids[:64], whole.labels[:64])
    assert last.answer_start is None
    assert data.report.events["truncated"] == ["train.jsonl line 9"]
    assert data.report.lost_target_tokens == whole.n_target_tokens - last.n_target_tokens


def test_overlong_rows_may_be_split(load):
    whole = load(LONG, validation=None).train[-1]
    data = load(LONG, validation=None, max_length=64, overlong="split")
    pieces = [example for example in data.train if example.row.line == 9]
    assert len(pieces) == -(-len(whole.input_ids) // 64)
    assert [i for piece in pieces for i in piece.input_ids] == whole.input_ids
    assert [i for piece in pieces for i in piece.labels] == whole.labels
    assert data.report.events["split"] == ["train.jsonl line 9"]
    assert data.report.lost_target_tokens == len(pieces) - 1  # the first token of each further piece


def test_nothing_left_after_dropping_is_refused(load):
    with pytest.raises(Refused, match=r"every example is longer than data\.max_length"):
        load(rows(5, words=50), max_length=32, overlong="drop", validation=None)


# Is anything trained?


@pytest.mark.parametrize(("empty", "kept"), [(0, 10), (3, 7)])
def test_examples_without_a_trained_token_are_dropped_and_counted(load, empty, kept):
    """Truncation cuts the whole answer off `empty` of ten rows."""
    data = [{**row, "prompt": "long " * 60} if i < empty else row for i, row in enumerate(rows(10))]
    loaded = load(data, validation=None, max_length=64, overlong="truncate")
    assert len(loaded.train) == kept
    assert len(loaded.report.events["no_target"]) == empty


def test_a_run_without_any_trained_token_is_refused(load):
    data = [{**row, "prompt": "long " * 60} for row in rows(4)]
    with pytest.raises(Refused, match=r"0 of 256 tokens are trained: .* \(first: train\.jsonl line 1\)"):
        load(data, validation=None, max_length=64, overlong="truncate")


def test_a_run_that_never_trains_a_stop_token_is_refused(load):
    message = r"No example has a trained end-of-turn token \(<\|im_end\|>\). The model would never learn to stop."
    with pytest.raises(Refused, match=message):
        load(rows(4, words=60), validation=None, max_length=40, overlong="truncate")


def test_every_wrong_row_is_said_with_its_place(load):
    bad = [{"messages": [{"role": "user", "content": "x"}]}, {"messages": [{"role": "assistant", "content": 17}]}]
    with pytest.raises(TopcoatError) as caught:
        load(bad)
    assert 'train.jsonl line 2: message 1: "content" is a number (17); expected text' in str(caught.value)
    assert "train.jsonl line 1: there is no assistant turn" in str(caught.value)


def test_what_the_template_refuses_is_said_with_its_place(write, chat_of):
    good = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    bad = {"messages": [{"role": "system", "content": "z"}, *good["messages"]]}
    settings = DataSettings(train=write("train.jsonl", [good, bad]))
    with pytest.raises(
        TopcoatError, match=r"train\.jsonl line 2: the chat template refuses these messages: System role"
    ):
        load_data(settings, chat_of("gemma").tokenizer, context_length=512, seed=1)


def test_a_token_without_an_embedding_is_refused(load, chatml):
    largest = chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert load(rows(3), vocab_rows=largest + 1).train
    assert load(rows(3), vocab_rows=largest + 100).train  # padded vocabularies are fine
    expected = f'train.jsonl line 1: token id {largest} ("<|im_end|>") has no embedding: the model has {largest}'
    with pytest.raises(TopcoatError, match=re.escape(expected)):
        load(rows(3), vocab_rows=largest)


# The report


def test_the_report_counts_what_is_trained(load):
    data = load(rows(10), validation=0.2)
    report = data.report
    assert (report.rows, report.train_examples, report.validation_examples) == (10, 8, 2)
    assert report.tokens == sum(len(e.input_ids) for e in data.train)
    assert report.target_tokens == sum(len(e.labels) - e.labels.count(IGNORE_INDEX) for e in data.train)
    assert report.format == "prompt_completion"
    assert "format prompt_completion was recognised from the columns prompt, completion" in report.notes
    assert json.loads(json.dumps(report.to_dict()))["share_trained"] == report.share_trained


def test_the_report_prints_what_happened_to_which_rows(load):
    data = [*LONG, {"prompt": "Say <|im_end|>", "completion": ""}]
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(load(data, validation=None, max_length=64, overlong="truncate").report)
    text = console.export_text()
    assert "longer than max_length: end cut off, stop token included: train.jsonl line 9" in text
    assert "text holds special tokens: kept as text: train.jsonl line 10" in text
    assert "warning: 1 rows: an answer is empty: only its stop token is trained (first: train.jsonl line 10)" in text


def test_a_share_of_trained_tokens_out_of_the_ordinary_is_warned_about(load):
    report = load([{"prompt": "x " * 300, "completion": ""}] * 3, validation=None, context_length=2048).report
    assert any("% of the tokens are trained" in warning for warning in report.warnings())


def test_a_byte_order_mark_is_noted(load, write):
    path = write("train.jsonl", "\ufeff" + json.dumps(rows(1)[0]))
    assert "train.jsonl starts with a byte-order mark" in load(path, validation=None).report.notes[0]


# Real rows


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("file", "form", "n"),
    [("chat_oasst_train.jsonl", "messages", 300), ("chat_sharegpt.json", "sharegpt", 150)]
    + [(f"formats/alpaca_mini{kind}", "alpaca", 60) for kind in (".jsonl", ".json", ".csv", ".tsv", ".parquet")],
)
def test_public_rows_load(load, shared_data, file, form, n):
    data = load(str(shared_data / file), validation=None, context_length=1 << 20)
    assert (data.report.format, len(data.train)) == (form, n)
    assert 0.4 < data.report.share_trained < 0.95


@pytest.mark.needs_data
def test_question_and_answer_columns_are_renamed(load, shared_data):
    columns = {"prompt": "question", "completion": "answer"}
    data = load(str(shared_data / "gsm8k_validation.jsonl"), columns=columns, context_length=4096)
    assert data.report.format == "prompt_completion"
    assert len(data.train) == 180


def test_ten_thousand_rows_encode_in_seconds(load):
    start = time.perf_counter()
    data = load(rows(10_000), validation=None)
    assert len(data.train) == 10_000
    assert time.perf_counter() - start < 30  # 3 s on two idle cores; the bound is for a busy machine
