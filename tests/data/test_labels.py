"""Labels and numbers of rows: the table, its order, and every file of labels that is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from topcoat.data.labels import read_labels
from topcoat.data.load import load_data
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError

ANIMALS = [
    {"text": f"A {name} says hello {i}.", "label": name} for i, name in enumerate(["dog", "cat", "eel", "cat"] * 3)
]


@pytest.fixture
def labelled(write):
    """labelled(rows, objective, **settings) -> Labels."""

    def read(rows, objective="classification", **settings):
        path = rows if isinstance(rows, str) else write("train.jsonl", rows)
        return read_labels(DataSettings(train=path, **settings), objective)

    return read


@pytest.fixture
def load(write, chatml):
    def load_rows(data, objective="classification", **settings):
        path = data if isinstance(data, str) else write("train.jsonl", data)
        keywords = {"context_length": 512, "seed": 1, "objective": objective}
        return load_data(DataSettings(train=path, **settings), chatml.tokenizer, **keywords)

    return load_rows


def complaint(call, *arguments, **keywords) -> str:
    with pytest.raises(TopcoatError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def rows_of(values) -> list[dict]:
    return [{"text": f"row {at}", "label": value} for at, value in enumerate(values)]


# The table


def test_labels_are_those_of_the_training_rows_in_the_order_of_their_names(labelled):
    found = labelled(ANIMALS)
    assert found.names == ("cat", "dog", "eel")
    assert next(iter(found.values.values()))[:4, 0].tolist() == [1, 0, 2, 0]


def test_whole_numbers_stand_in_numeric_order(labelled):
    assert labelled(rows_of([10, 2, 1, 2, 10])).names == ("1", "2", "10")
    assert labelled(rows_of(["10", "2", "-1"])).names == ("-1", "2", "10")
    assert labelled(rows_of([1.0, 2.0, 1.0])).names == ("1", "2")
    assert labelled(rows_of([True, False, True])).names == ("false", "true")


def test_the_recipe_may_name_the_labels_and_their_order(labelled):
    found = labelled(ANIMALS, labels=["eel", "dog", "cat", "fox"])
    assert found.names == ("eel", "dog", "cat", "fox")
    assert any("no training row has the label 'fox'" in note for note in found.notes)


def test_numbers_in_the_rows_count_the_names_of_the_recipe(labelled):
    found = labelled(rows_of([1, 0, 1]), labels=["bad", "good"])
    assert next(iter(found.values.values()))[:, 0].tolist() == [1, 0, 1]


def test_a_column_of_another_name_holds_the_labels(labelled):
    rows = [{"text": row["text"], "kind": row["label"]} for row in ANIMALS]
    assert labelled(rows, label_columns=["kind"]).names == ("cat", "dog", "eel")
    assert labelled(rows, columns={"label": "kind"}).names == ("cat", "dog", "eel")


def test_labels_that_differ_in_case_only_are_warned_about(labelled):
    assert any(
        "'dog' and 'Dog' differ in case" in note for note in labelled(rows_of(["dog", "dog", "Dog", "cat"])).notes
    )


# What is no label

WRONG = {
    "one label": (["dog"] * 5, "every row has the label 'dog' in 'label': there is nothing to tell apart"),
    "no label": (["dog", None, "cat"], "train.jsonl line 2: 'label' is null; expected a label"),
    "an empty one": (["dog", " ", "cat"], "line 2: 'label' is empty; expected the name of a label"),
    "a share": ([0.5, 1, 2], "is a number (0.5); expected a label: text or a whole number; for numbers write"),
    "several": (["dog", ["cat", "eel"]], "is a list of 2; expected a label: text or a whole number; one label a row"),
    "all different": ([f"id {at}" for at in range(200)], "has 200 different labels in 200 rows: it is no column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_label_is_said(labelled, case):
    values, expected = WRONG[case]
    assert expected in complaint(labelled, rows_of(values))


def test_a_missing_column_is_said_with_the_columns_there_are(labelled):
    rows = [{"text": "a", "lable": "x"}, {"text": "b", "lable": "y"}]
    said = complaint(labelled, rows)
    assert "no row has the column 'label', which holds the labels; the columns are lable, text" in said
    assert "data.label_columns: [lable]" in said


def test_a_row_without_the_column_is_named(labelled):
    said = complaint(labelled, [*ANIMALS, {"text": "no label here"}])
    assert 'train.jsonl line 13: "label" is missing; the row has text' in said


def test_a_label_of_the_validation_rows_alone_is_refused_with_the_nearest(labelled, write):
    held_out = write("held.jsonl", rows_of(["cat", "dgo"]))
    said = complaint(labelled, ANIMALS, validation=held_out)
    assert "held.jsonl line 2: the label 'dgo' is not among the labels of the training rows" in said
    assert "did you mean 'dog'?" in said


def test_a_label_that_the_recipe_does_not_name_is_refused(labelled):
    assert "the label 'eel' is not among data.labels" in complaint(labelled, ANIMALS, labels=["cat", "dog"])


def test_two_columns_are_no_label(labelled):
    assert "classification learns one label of each row" in complaint(labelled, ANIMALS, label_columns=["a", "b"])


# Numbers


def test_one_or_several_columns_or_a_list_hold_the_numbers(labelled, write):
    rows = [{"text": "a", "x": 1, "y": 2.5, "both": [1, 2.5]}, {"text": "b", "x": 3, "y": -1, "both": [3, -1]}]
    several = labelled(rows, "regression", label_columns=["x", "y"])
    assert (several.names, several.outputs) == (("x", "y"), 2)
    listed = labelled(rows, "regression", label_columns=["both"])
    assert listed.names == ("both[0]", "both[1]")
    assert next(iter(several.values.values())).tolist() == next(iter(listed.values.values())).tolist()
    assert labelled(write("t.csv", "text,label\na,1.5\nb,-2\n"), "regression").names == ("label",)


NUMBERS = {
    "words": ([1, "high", 2], "line 2: 'label' is text ('high'); expected a number"),
    "truth": ([1, True, 2], "is a truth value (true); expected a number"),
    "nothing": ([1, None, 2], "is null; expected a number"),
    "infinity": ([1, "inf", 2], "is text ('inf'); expected a finite number"),
    "another length": ([[1, 2], [1]], "line 2: 'label' has 1 numbers; the first row has 2"),
    "always the same": ([3, 3, 3], "every row has the number 3 in 'label': there is nothing to learn"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_what_is_no_number_is_said(labelled, case):
    values, expected = NUMBERS[case]
    assert expected in complaint(labelled, rows_of(values), "regression")


def test_numbers_far_from_zero_are_warned_about(labelled):
    notes = labelled(rows_of([250_000, 310_000]), "regression").notes
    assert any("scale it to mean 0 and spread 1" in note for note in notes)


# Examples


def test_a_text_is_encoded_as_the_tokenizer_encodes_it_and_its_last_token_is_read(load, chatml):
    data = load(ANIMALS, validation=None)
    for example, row in zip(data.train, ANIMALS, strict=True):
        assert example.input_ids == chatml.tokenizer(row["text"]).input_ids
        assert [at for at, label in enumerate(example.labels) if label != IGNORE_INDEX] == [len(example.labels) - 1]
    assert data.report.target_tokens == len(ANIMALS)


def test_held_out_rows_keep_their_labels(load):
    data = load(ANIMALS, validation=0.25)
    names = data.labels.names
    for some in (data.train, data.validation):
        said = [names[int(number)] for number in some.answers(np.arange(len(some)))[:, 0]]
        assert said == [ANIMALS[example.row.line - 1]["label"] for example in some]
    assert sum(data.label_counts()) == len(data.train)


def test_a_text_made_of_columns_has_its_label_beside_it(load):
    rows = [{"premise": f"It rains {i}.", "claim": "It is wet.", "label": "yes" if i % 2 else "no"} for i in range(6)]
    data = load(rows, validation=None, text_template="{premise}\n{claim}")
    assert data.labels.names == ("no", "yes")


def test_another_label_is_another_data_set(load):
    one = load(ANIMALS, validation=None).identity()
    changed = [{**ANIMALS[0], "label": "eel"}, *ANIMALS[1:]]
    assert load(changed, validation=None).identity() != one


def test_rows_of_chats_have_no_text_to_label(load):
    rows = [{"instruction": "Label it.", "input": "a text", "output": "dog"}] * 2
    said = complaint(load, rows, label_columns=["output"])
    assert 'there is no "text": these rows are alpaca (instruction, input, output)' in said
    assert "data.columns: {text: input}" in said


def test_parts_of_a_text_have_no_label_of_their_own(load):
    said = complaint(load, ANIMALS, overlong="split", max_length=8)
    assert "one label for a whole text, not for parts" in said


def test_json_rows_with_columns_of_any_name_are_read(load, write):
    path = write("t.jsonl", "".join(json.dumps({"input": r["text"], "output": r["label"]}) + "\n" for r in ANIMALS))
    data = load(path, validation=None, columns={"text": "input"}, label_columns=["output"])
    assert data.labels.names == ("cat", "dog", "eel")
