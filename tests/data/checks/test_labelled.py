"""Texts with a label or with numbers, checked as what they are: what is said of a text is its answer."""

from __future__ import annotations

import json

import pytest
from planted import label_rows

from topcoat.data.checks.files import check_files
from topcoat.data.checks.fix import fix
from topcoat.data.checks.reading import likely_objective
from topcoat.data.checks.verdict import summary
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError
from topcoat.report.check_page import render

KINDS = ["billing", "delivery", "returns"]


def texts(n=120, seed=0):
    return [{"text": row["prompt"], "label": row["completion"]} for row in label_rows(n, tuple(KINDS), seed=seed)]


@pytest.fixture
def checked(tmp_path):
    """checked(rows, "classification", label_columns=[...]) -> (the verdict, the settings)."""

    def run(rows, objective="classification", held=None, **settings):
        for name, some in (("t.jsonl", rows), ("v.jsonl", held or [])):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
        data = DataSettings(
            train=str(tmp_path / "t.jsonl"), validation=str(tmp_path / "v.jsonl") if held else None, **settings
        )
        return check_files(data, objective=objective), data

    return run


def found(verdict):
    return {one.check: one for one in verdict.found}


@pytest.mark.parametrize(
    ("spelled", "settings"),
    [
        (lambda row: row, {}),
        (lambda row: {"body": row["text"], "kind": KINDS.index(row["label"])},
         {"columns": {"text": "body"}, "label_columns": ["kind"], "labels": KINDS}),
        (lambda row: {"title": row["text"], "label": row["label"]}, {"text_template": "Ticket: {title}"}),
    ],
    ids=["names", "numbers of names", "a template"],
)  # fmt: skip
def test_the_labels_are_the_table_whatever_they_are_called(checked, spelled, settings):
    verdict, _ = checked([spelled(row) for row in texts()], **settings)
    assert found(verdict) == {}
    assert verdict.figures.form == "classification"
    assert sorted(verdict.figures.labels or {}) == (KINDS)


def test_a_class_of_one_in_a_hundred_is_found_and_its_rows_are_named(checked):
    rows = [{**row, "label": "rare" if at % 100 == 7 else "frequent"} for at, row in enumerate(texts(200))]
    one = found(checked(rows)[0])
    assert set(one) == {"class_imbalance", "rare_labels"}
    assert one["class_imbalance"].finding.what == "label 'frequent' stands on 99 % of the rows (198), 'rare' on 2"
    assert one["class_imbalance"].rows == one["rare_labels"].rows == [7, 107]
    assert one["class_imbalance"].finding.details[7] == "'rare': 2 rows"
    rows = [{**row, "label": "often" if at % 10 else "mostly"} for at, row in enumerate(texts(300))]
    for at in (3, 4, 5, 6, 7, 8):
        rows[at]["label"] = "rare"
    (told,) = checked(rows)[0].found
    assert (told.check, told.rows) == ("class_imbalance", [3, 4, 5, 6, 7, 8]), "what is a tenth as frequent is not rare"


def test_a_label_that_no_row_has_is_named(checked):
    (one,) = checked(texts(), labels=[*KINDS, "warranty"])[0].found
    assert one.finding.what == "1 of 4 labels have fewer than 5 rows: 'warranty' 0"


def test_one_text_with_two_labels_contradicts_itself_and_the_copy_keeps_what_most_say(checked, tmp_path):
    rows = texts()
    at = next(at for at, row in enumerate(rows) if row["label"] == "billing")
    rows += [dict(rows[at]), {**rows[at], "label": "returns"}]
    verdict, settings = checked(rows)
    assert found(verdict)["contradictions"].rows == [at, 120, 121]
    assert found(verdict)["exact_duplicates"].rows == [120]
    fix(verdict, settings, tmp_path / "c.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert kept == rows[:120]


def test_numbers_are_no_labels_and_one_text_with_two_of_them_contradicts_itself(checked):
    rows = [{"text": row["text"], "stars": at % 5} for at, row in enumerate(texts())]
    verdict, _ = checked([*rows, {**rows[3], "stars": 4.5}], "regression", label_columns=["stars"])
    assert verdict.figures.labels is None
    assert found(verdict)["contradictions"].rows == [3, 120]
    assert set(found(verdict)) <= {"contradictions", "near_duplicates"}


def test_validation_texts_that_are_trained_on_are_a_leak(checked):
    rows = texts()
    one = found(checked(rows, held=[rows[5], *texts(20, seed=9)])[0])
    assert set(one) == {"validation_leaks"}
    assert one["validation_leaks"].rows == [5]


def test_a_label_that_stands_only_in_validation_is_found_and_its_rows_are_named(checked):
    rows, held = texts(), texts(30, seed=9)
    held[4]["label"] = held[7]["label"] = "warranty"
    verdict, _ = checked(rows, held=held)
    (one,) = verdict.found
    assert (one.check, one.policy, verdict.exit_code) == ("unseen_labels", "stop", 1)
    assert one.finding.what == "1 label of the validation rows is in no training row: 'warranty'"
    assert one.finding.why == "2 validation rows cannot be answered, and the run stops at them"
    (said,) = verdict.to_dict()["findings"]
    assert [(row["file"][-7:], row["line"], row["said"]) for row in said["rows"]] == [
        ("v.jsonl", 5, "'warranty'"),
        ("v.jsonl", 8, "'warranty'"),
    ]
    assert said["count"] == 2
    assert [row["line"] for row in verdict.row_list()] == [5, 8]
    assert "(first: v.jsonl line 5)" in summary(verdict)[0]
    assert '<th scope="row">v.jsonl line 8</th>' in render(verdict)


def test_a_label_that_is_named_and_never_trained_is_unseen_and_does_not_stop(checked):
    held = texts(30, seed=9)
    held[4]["label"] = "warranty"
    verdict, _ = checked(texts(), held=held, labels=[*KINDS, "warranty"])
    one = found(verdict)["unseen_labels"]
    assert (one.policy, one.finding.why) == ("warn", "1 validation row cannot be answered")


def test_a_validation_row_without_a_label_is_refused_in_the_words_of_a_run(checked):
    with pytest.raises(TopcoatError) as error:
        checked(texts(), held=[*texts(5, seed=9), {"text": "x", "label": None}])
    assert "v.jsonl line 6: 'label' is null; expected a label: text or a whole number" in str(error.value)


@pytest.mark.parametrize(
    ("held", "objective", "why_not"),
    [
        ({"text": "A.", "label": "warranty"}, "classification", ""),
        ({"text": "A."}, "sft", "'label' is not checked as a label: v.jsonl line 1: \"label\" is missing"),
    ],
)
def test_a_file_alone_is_labelled_texts_whatever_labels_its_validation_rows_have(tmp_path, held, objective, why_not):
    for name, rows in (("t.jsonl", texts()), ("v.jsonl", [held])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(train=str(tmp_path / "t.jsonl"), validation=str(tmp_path / "v.jsonl"))
    found, why = likely_objective(settings)
    assert found == objective
    assert why.startswith(why_not)


@pytest.mark.parametrize(
    ("change", "settings", "what"),
    [
        ({"label": None}, {}, "t.jsonl line 5: 'label' is null; expected a label"),
        ({"label": "refund"}, {"labels": KINDS}, "the label 'refund' is not among data.labels"),
        ({}, {"format": "messages"}, "train.objective: classification learns plain texts"),
        ({}, {"label_columns": ["kind"]}, "no row has the column 'kind', which holds the labels"),
    ],
)
def test_what_a_run_would_refuse_is_refused_in_its_words(checked, change, settings, what):
    rows = texts()
    rows[4] |= change
    with pytest.raises(TopcoatError) as error:
        checked(rows, **settings)
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("rows", "objective", "why_not"),
    [
        (texts(), "classification", ""),
        ([{"text": row["text"]} for row in texts()], "sft", ""),
        ([{**row, "label": 0.5} for row in texts()], "sft", ""),
        ([{**row, "label": "x"} for row in texts()], "sft", "every row has the label 'x'"),
        ([{**row, "label": f"{at}"} for at, row in enumerate(texts())], "sft", "120 different labels in 120 rows"),
        ([*texts(), {"text": "a"}], "sft", '"label" is missing; the row has text'),
        ([{"prompt": "a", "completion": "b", "label": "c"}], "sft", ""),
    ],
)
def test_a_file_alone_is_labelled_texts_where_each_row_has_one_of_a_few(tmp_path, rows, objective, why_not):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, why = likely_objective(DataSettings(train=str(tmp_path / "t.jsonl"), validation=None))
    assert found == objective
    assert why_not in why
    assert bool(why) == bool(why_not)
