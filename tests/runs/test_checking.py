"""What a recipe adds to the checks of its data: tokens and positions as its run computes them; labelled rows shown."""

from __future__ import annotations

import errno
import json

import pytest

from topcoat.data.checks.files import check_files
from topcoat.data.load import load_data
from topcoat.data.view import TRAINED
from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs import checking
from topcoat.runs.checking import recipe_setting
from topcoat.runs.opening import RunSteps
from topcoat.runs.showing import open_tokenizer, shown_row, shown_rows

TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}"
ANSWERS_ONLY = "{% for m in messages if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endfor %}"
WORDS = ["coat", "model", "voice", "question", "days", "printer", "screen", "invoice", "weight", "loss", "step", "name"]


@pytest.fixture
def labelled(tiny_recipe, tmp_path):
    """labelled("classification"): a recipe over twenty texts with a team and a number of stars each."""

    def make(objective, **data):
        rows = [
            {"text": " ".join(WORDS[at % 9 : at % 9 + 3 + at % 5]), "team": "ab"[at % 2], "stars": at / 4}
            for at in range(20)
        ]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        column = {"classification": "team", "regression": "stars"}.get(objective)
        named = {"label_columns": [column]} if column else {}
        recipe = tiny_recipe(data={"train": str(tmp_path / "t.jsonl"), "validation": None, **named, **data})
        del recipe["evaluate"]
        recipe["train"] |= {"objective": objective, "max_steps": 7, "batch_size": 3}
        return recipe_from_dict(recipe)

    return make


def of_the_run(recipe):
    """The examples of one epoch as the run itself batches them."""
    opened = open_tokenizer(recipe)
    data = load_data(
        recipe.data,
        opened.tokenizer,
        context_length=opened.context_length,
        seed=recipe.seed,
        objective=recipe.train.objective,
    )
    steps = RunSteps(data, recipe, micro_batch_tokens(recipe.train.micro_batch_tokens, data.max_length))
    return data, [batch for step in range(steps.plan.steps_in(0)) for batch in steps.micro_batches(step)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("objective", ["classification", "regression", "completion"])
def test_the_tokens_and_positions_that_are_counted_are_those_of_the_run(labelled, objective, packing):
    recipe = labelled(objective, packing=packing)
    data, batches = of_the_run(recipe)
    said = recipe_setting(recipe, 20, lambda *told: None)
    assert said.lengths is not None
    assert said.lengths.tokens == data.train.lengths.tolist()
    assert said.target_tokens == sum(batch.n_target_tokens for batch in batches)
    computed = sum(batch.input_ids.numel() for batch in batches)
    assert said.fill == pytest.approx(sum(batch.n_tokens for batch in batches) / computed)


@pytest.mark.parametrize(
    ("objective", "overlong"),
    [("completion", "split"), ("completion", "truncate"), ("sft", "truncate"), ("sft", "drop")],
)
def test_rows_over_the_limit_are_counted_as_the_run_cuts_them(labelled, objective, overlong):
    recipe = labelled(objective, max_length=12, overlong=overlong, packing=False)
    _, batches = of_the_run(recipe)
    said = recipe_setting(recipe, 20, lambda *told: None)
    assert max(said.lengths.tokens) > 12
    computed = sum(batch.input_ids.numel() for batch in batches)
    assert said.fill == pytest.approx(sum(batch.n_tokens for batch in batches) / computed)


@pytest.fixture
def templated(tiny_recipe, tmp_path):
    """templated(template, with_system, **data): a recipe of 60 chats, those of `with_system` with a system turn."""

    def make(template, with_system, **data):
        for name, rows in (("t.jsonl", range(60)), ("v.jsonl", range(60, 70))):
            with (tmp_path / name).open("w") as out:
                for at in rows:
                    turns = [("user", f"What is {WORDS[at % 12]} {at}?"), ("assistant", f"It is {WORDS[at % 7]}.")]
                    turns[:0] = [("system", f"Be {at}.")] if at in with_system else []
                    out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
        (tmp_path / "t.jinja").write_text(template)
        data = {"train": str(tmp_path / "t.jsonl"), "validation": None, **data}
        if data["validation"] == "v.jsonl":
            data["validation"] = str(tmp_path / "v.jsonl")
        recipe = tiny_recipe(model={"chat_template": str(tmp_path / "t.jinja")}, data=data)
        del recipe["evaluate"]
        return recipe_from_dict(recipe)

    return make


def checked(recipe):
    """The findings of `topcoat data check` about rows that are refused."""
    verdict = check_files(recipe.data, setting=lambda rows: recipe_setting(recipe, rows, lambda *told: None))
    return verdict, [one for one in verdict.found if one.check == "refused_rows"]


def test_rows_that_training_refuses_are_named_and_stop(templated):
    recipe = templated(DROPS_SYSTEM, range(0, 60, 2))
    verdict, (one,) = checked(recipe)
    assert verdict.exit_code == 1
    assert one.rows == list(range(0, 60, 2))
    assert one.finding.what == "30 rows refused by `topcoat train`"
    assert one.finding.details[4] == 'the chat template leaves out message 1 (system): "Be 4."'
    assert "data.allow: [dropped_turns] trains without it" in one.finding.fix
    with pytest.raises(TopcoatError) as caught:
        list(shown_rows(recipe, open_tokenizer(recipe), 1))
    assert f"t.jsonl line 5: {one.finding.details[4]}" in str(caught.value)
    assert one.finding.fix in str(caught.value)


def test_what_the_recipe_allows_is_trained_and_not_found(templated):
    recipe = templated(DROPS_SYSTEM, range(0, 60, 2), allow=["dropped_turns"])
    assert checked(recipe)[1] == []
    assert len(recipe_setting(recipe, 60, lambda *told: None).lengths.rows) == 60


def test_a_policy_of_warn_does_not_let_pass_what_training_refuses(templated):
    verdict, (one,) = checked(templated(DROPS_SYSTEM, [7], checks={"refused_rows": "warn"}))
    assert (verdict.exit_code, one.rows) == (1, [7])
    assert checked(templated(DROPS_SYSTEM, [7], checks={"refused_rows": "off"}))[1] == []


def test_validation_rows_that_training_refuses_stop_too(templated):
    _, (one,) = checked(templated(DROPS_SYSTEM, [63, 66], validation="v.jsonl"))
    assert one.policy == "stop"
    assert one.finding.what == "2 validation rows refused by `topcoat train`"
    said = 'the chat template leaves out message 1 (system): "Be 63."'
    assert one.finding.elsewhere[0][1:] == (4, said)
    assert one.finding.count == 2


@pytest.mark.parametrize(
    ("template", "data", "what", "fix"),
    [
        (ANSWERS_ONLY, {"allow": ["dropped_turns"]}, "every token is trained", "data.loss_on: all"),
        (DROPS_SYSTEM, {"max_length": 8, "overlong": "truncate"}, "tokens are trained", "raise data.max_length"),
        (DROPS_SYSTEM, {"max_length": 22, "overlong": "truncate"}, "No example has a trained", "[no_stop_token]"),
    ],
)
def test_what_training_refuses_the_whole_data_for_is_found(templated, template, data, what, fix):
    verdict, (one,) = checked(templated(template, [], **data))
    assert verdict.exit_code == 1
    assert what in one.finding.what
    assert fix in one.finding.fix


def test_a_refused_row_that_was_not_counted_is_named_all_the_same(templated, monkeypatch):
    monkeypatch.setattr(checking, "COUNTED", 20)  # every third row
    _, (one,) = checked(templated(DROPS_SYSTEM, [7, 8]))
    assert one.rows == [7, 8]
    assert "t.jsonl line 8: the chat template leaves out message 1" in one.finding.what
    assert one.finding.details[8] == 'the chat template leaves out message 1 (system): "Be 8."'
    _, (one,) = checked(templated(DROPS_SYSTEM, [9]))
    assert one.finding.what == "1 row of 20 counted refused by `topcoat train`"


def test_a_disk_that_takes_no_tokens_is_no_finding(templated, monkeypatch):
    def full(*arguments):
        raise DiskFull("cannot write", need=1, free=0, errno=errno.ENOSPC)

    monkeypatch.setattr(checking, "load_for", full)
    with pytest.raises(DiskFull, match="cannot write"):
        checked(templated(DROPS_SYSTEM, []))


@pytest.mark.parametrize(("objective", "label"), [("classification", "team: b"), ("regression", "stars: 0.75")])
def test_a_labelled_row_alone_is_shown_as_in_its_batch_with_its_label(labelled, objective, label):
    recipe = labelled(objective)
    opened = open_tokenizer(recipe)
    alone = shown_row(recipe, opened, 4).documents[0]
    rows = {document.place: document for row in shown_rows(recipe, opened, 99) for document in row.documents}
    assert alone == rows["t.jsonl line 4"]
    assert alone.notes == [label]
    assert [token.kind for token in alone.tokens].index(TRAINED) == len(alone.tokens) - 1


def test_a_row_without_its_label_is_named(labelled):
    recipe = labelled("classification", label_columns=["kind"])
    with pytest.raises(TopcoatError, match=r't\.jsonl line 1: "kind" is missing'):
        shown_row(recipe, open_tokenizer(recipe), 1)


def test_a_document_is_shown_in_the_windows_it_is_trained_in(labelled, tmp_path):
    (tmp_path / "d.txt").write_text(" ".join(WORDS * 20))
    recipe = labelled("completion", train=str(tmp_path / "d.txt"), max_length=64)
    opened = open_tokenizer(recipe)
    windows = {tuple(token.text for token in d.tokens) for d in shown_row(recipe, opened, 1).documents}
    shown = {tuple(t.text for t in d.tokens) for row in shown_rows(recipe, opened, 99) for d in row.documents}
    assert shown == windows
    assert len(windows) > 5
