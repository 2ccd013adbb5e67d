"""What a recipe adds to the checks of its data: tokens and positions as its run computes them; labelled rows shown."""

from __future__ import annotations

import json

import pytest

from topcoat.data.load import load_data
from topcoat.data.view import TRAINED
from topcoat.errors import TopcoatError
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.checking import recipe_setting
from topcoat.runs.opening import RunSteps
from topcoat.runs.showing import open_tokenizer, shown_row, shown_rows

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
