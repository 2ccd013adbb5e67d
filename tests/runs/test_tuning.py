"""Whole searches on a tiny model: what they see, what they leave, and how they go on."""

import json
import re
import time
import weakref
from pathlib import Path

import pytest
import torch

from topcoat.data.load import load_data
from topcoat.errors import Interrupted, Refused, TopcoatError
from topcoat.model.load import load_model
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.runs import tuning, tuning_data, tuning_range, tuning_trial
from topcoat.runs.listener import Silent
from topcoat.runs.tuning import tune
from topcoat.training.signals import StopSignals

pytest.importorskip("optuna")
from topcoat.runs.tuning_study import Study, Tried, quiet, winner

OVER = "learning_rate=1e-3..1e-2,r=4/8"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, str]:
    """Files of 60 training rows and 6 others."""
    folder = tmp_path_factory.mktemp("rows")
    made = [{"prompt": f"What is {n}?", "completion": f"{n * 7} is {n % 5}"} for n in range(66)]
    files = {"train": made[:60], "validation": made[60:]}
    for name, some in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {name: str(folder / f"{name}.jsonl") for name in files}


@pytest.fixture(autouse=True)
def short(monkeypatch, request) -> None:
    """Trials of nine steps, and no page where it is not looked at: most of a tiny search's time."""
    quiet()
    monkeypatch.setattr(tuning_data, "FULL_TRIALS", 10**6)
    monkeypatch.setattr(tuning_range, "MOST", 8)
    if "page" not in request.node.name:
        monkeypatch.setattr("topcoat.runs.tuning.tuning_page", lambda facts: "")


@pytest.fixture
def recipe(tiny_recipe, rows):
    return recipe_from_dict(tiny_recipe("run", data=dict(rows), train={"max_steps": 12, "learning_rate": "auto"}))


@pytest.fixture
def seen(monkeypatch) -> dict[str, set[str]]:
    """The rows that a loss was computed of, by whether the model was training."""
    found: dict[str, set[str]] = {"trained": set(), "measured": set()}
    made = tuning_trial.make_loss

    def watched(base, adapters, fused=None, settings=None, **more):
        inner = made(base, adapters, fused, settings, **more)

        def loss(batch):
            kind = "trained" if base.model.training else "measured"
            found[kind].add(base.tokenizer.decode(batch.input_ids.flatten()))
            return inner(batch)

        return loss

    for module in (tuning_trial, tuning_range):
        monkeypatch.setattr(module, "make_loss", watched)
    return found


def questions(texts: set[str]) -> set[int]:
    return {int(number) for text in texts for number in re.findall(r"What is (\d+)\?", text)}


def test_a_search_leaves_a_recipe_and_a_page_and_never_sees_the_held_out_rows(recipe, seen, tmp_path):
    tuned = tune(recipe, OVER, "90s", trials=3)
    assert [trial.number for trial in tuned.tried] == [0, 1, 2]
    assert tuned.folder == tmp_path / "run-tune"
    trained, measured = questions(seen["trained"]), questions(seen["measured"])
    assert trained
    assert measured
    assert not trained & measured
    assert not (trained | measured) & set(range(60, 66)), "the validation rows of the recipe"
    made = load_recipe(tuned.recipe)
    assert made.train.learning_rate == tuned.best.values["learning_rate"]
    assert made.adapter.r == tuned.best.values["r"]
    assert (made.output, made.data, made.train.max_steps) == (recipe.output, recipe.data, 12)
    page = (tuned.folder / "tune.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"http|<script", page)
    assert f"r {tuned.best.values['r']}" in page
    state = json.loads((tuned.folder / "tune.json").read_text())
    assert state["best"]["losses"]["9"] == min(trial["losses"].get("9", 99) for trial in state["trials"])


def test_a_share_that_the_recipe_holds_out_is_not_seen_either(tiny_recipe, rows, seen):
    held = recipe_from_dict(tiny_recipe("run", data={"train": rows["train"], "validation": 0.2}))
    tune(held, OVER, "90s", trials=1)
    searched = questions(seen["trained"]) | questions(seen["measured"])
    base = load_model(held.model)
    own = load_data(held.data, base.tokenizer, context_length=512, seed=held.seed)
    asked = questions({base.tokenizer.decode(example.input_ids) for example in own.validation})
    assert len(asked) == 12
    assert not searched & asked


def test_the_time_is_kept_to_within_one_rung(recipe):
    began = time.monotonic()
    tuned = tune(recipe, "learning_rate", "3s")
    assert tuned.tried
    assert time.monotonic() - began < 3 + 5  # loading and a rung of a busy machine
    again = tune(recipe, "learning_rate", "3s")
    assert len(again.tried) == len(tuned.tried), "the time of the study is spent"


def test_a_time_that_is_too_short_still_gives_one_trial_its_first_measurement(recipe):
    tuned = tune(recipe, "learning_rate", "0.1s")
    assert [list(trial.losses) for trial in tuned.tried] == [[1]]


def test_values_that_every_trial_is_refused_for_end_the_search_with_the_reason(recipe):
    began = time.monotonic()
    with pytest.raises(TopcoatError, match="q_prj"):
        tune(recipe, "target_modules=q_prj/v_prj", "90s")
    assert time.monotonic() - began < 60


def test_an_interrupted_search_goes_on_where_it_stopped(recipe, ear):
    stopping = ear(lambda heard: heard["label"] == "trial 1" and heard["done"] == 2)
    with pytest.raises(Interrupted) as caught:
        tune(recipe, OVER, "90s", trials=3, listener=stopping)
    assert caught.value.exit_code == 143
    folder = Path(f"{recipe.output}-tune")
    before = json.loads((folder / "tune.json").read_text())
    assert [trial["trial"] for trial in before["trials"]] == [0]
    with pytest.raises(TopcoatError, match="searches over"):
        tune(recipe, "learning_rate", "90s", trials=3)
    with pytest.raises(TopcoatError, match="another recipe"):
        tune(recipe.model_copy(update={"seed": 1}), OVER, "90s", trials=3)
    tuned = tune(recipe, OVER, "90s", trials=3)
    after = json.loads((folder / "tune.json").read_text())
    assert len(tuned.tried) == 3
    assert after["slice"] == before["slice"]
    assert after["trials"][0] == before["trials"][0]
    assert [trial.number for trial in tuned.tried][:2] == [0, 2], "trial 1 was given up and tried again as 2"


def test_values_that_a_killed_process_was_at_are_tried_again(tmp_path):
    study = Study(tmp_path / "s.journal", seed=1)
    lost = study.ask()
    value = lost.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    again = Study(tmp_path / "s.journal", seed=1)
    assert again.ask().suggest_float("learning_rate", 1e-5, 1e-2, log=True) == value
    assert again.tried() == []


def test_a_trial_that_cannot_be_trained_is_passed_over(recipe, monkeypatch):
    real = tuning_trial.attach_to

    def refusing(base, data, recipe):
        if recipe.adapter.r == 8:
            raise TopcoatError("rank 8 is refused here")
        return real(base, data, recipe)

    monkeypatch.setattr(tuning_trial, "attach_to", refusing)
    tuned = tune(recipe, "r=4/8,learning_rate=1e-3/2e-3", "90s", trials=2)
    assert {trial.values["r"] for trial in tuned.tried} == {4}
    assert tuned.best.values["r"] == 4


def test_full_fine_tuning_is_searched_on_a_base_that_is_loaded_again(tiny_recipe, rows, monkeypatch):
    made = recipe_from_dict(tiny_recipe("run", adapter={"method": "full"}, data=dict(rows)) | {"adapter": "full"})
    tuned = tune(made, "learning_rate=0.005/0.006", "90s", trials=2)
    one, two = (trial.losses[1] for trial in tuned.tried)
    assert abs(one - two) < 0.5, "the second trial began with what the first had learned"


def test_full_tuning_never_holds_two_models(tiny_recipe, rows, monkeypatch):
    made = recipe_from_dict(tiny_recipe("run", adapter={"method": "full"}, data=dict(rows)) | {"adapter": "full"})
    models, alive = [], []
    load = tuning.load_base_for_training

    def counting(*arguments):
        alive.append(sum(model() is not None for model in models))
        base = load(*arguments)
        models.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(tuning, "load_base_for_training", counting)
    tune(made, "learning_rate=0.005/0.006", "90s", trials=2)
    assert alive == [0, 0, 0]  # for the range test and for each trial


def out_of_memory(monkeypatch, module, above):
    """The losses that `module` makes run out of memory on more than `above` rows; the sizes they were asked for."""
    sizes, made = [], module.make_loss

    def limited(base, *rest, **more):
        inner = made(base, *rest, **more)

        def loss(batch):
            sizes.append((len(batch.rows), base.model.training))
            if len(batch.rows) > above(base.model.training):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return inner(batch)

        return loss

    monkeypatch.setattr(module, "make_loss", limited)
    return sizes


def test_memory_that_runs_out_while_measuring_makes_the_batches_smaller(recipe, monkeypatch, ear):
    sizes, heard = out_of_memory(monkeypatch, tuning_trial, lambda training: 99 if training else 2), ear()
    tuned = tune(recipe, "r=4", "90s", trials=1, listener=heard)
    assert tuned.best.reached == 9
    assert max(rows for rows, training in sizes if not training) > 2
    assert "memory ran out while measuring (CUDA out of memory. Tried to allocate 1.00 GiB.)" in heard.text


def test_memory_that_holds_no_row_at_all_ends_the_search_with_the_reason(recipe, monkeypatch):
    monkeypatch.setattr(tuning, "IN_VAIN", 1)
    out_of_memory(monkeypatch, tuning_trial, lambda training: 99 if training else 0)
    with pytest.raises(Refused, match="measuring a trial one row at a time does not fit into memory"):
        tune(recipe, "r=4/8", "90s", trials=9)


def test_memory_that_runs_out_in_the_range_test_makes_the_batches_smaller(recipe, monkeypatch, ear):
    sizes, heard = out_of_memory(monkeypatch, tuning_range, lambda training: 2), ear()
    tune(recipe, "r=4", "90s", trials=1, listener=heard)
    assert max(rows for rows, _ in sizes) > 2
    assert "memory ran out in the range test" in heard.text


def test_memory_that_holds_no_row_in_the_range_test_is_refused(recipe, monkeypatch):
    out_of_memory(monkeypatch, tuning_range, lambda training: 0)
    with pytest.raises(Refused, match="does not fit into memory by itself"):
        tune(recipe, "r=4", "90s", trials=1)


def test_a_trial_that_recomputes_leaves_the_next_one_as_it_would_be(recipe):
    asked = {"method": "dora", "r": 4}  # computed by transformers' layers
    train = recipe.train.model_copy(update={"recompute": "block"})
    made = recipe_from_dict(recipe.model_dump(mode="json") | {"adapter": asked}).model_copy(update={"train": train})
    base = load_model(made.model)
    data = load_data(made.data, base.tokenizer, context_length=base.context_length, seed=1)
    bench = tuning_trial.Bench(lambda: base, data, Path(), StopSignals(), Silent(), 0)
    with bench.attached(made) as (_, plan):
        assert plan.engine.checkpointing
        assert base.model.is_gradient_checkpointing
    assert not base.model.is_gradient_checkpointing


def test_one_document_is_divided_and_one_window_is_refused(tiny_recipe, tmp_path):
    text = tmp_path / "one.txt"
    text.write_text(" ".join(f"the number {i} times seven is {i * 7}" for i in range(40)))
    data = {"train": str(text), "validation": None, "max_length": 64}
    made = recipe_from_dict(tiny_recipe("run", train={"objective": "completion"}) | {"data": data, "evaluate": {}})
    base = load_model(made.model)

    def loaded(**more):
        settings = made.data.model_copy(update=more)
        return load_data(settings, base.tokenizer, context_length=2048, seed=1, objective="completion")

    whole = loaded()
    found = tuning_data.search_rows(whole, 1)
    ids = [row.input_ids for row in whole.train]
    assert [row.input_ids for row in found.train] + [row.input_ids for row in found.validation] == ids
    assert len(found.train) > len(found.validation) > 0
    with pytest.raises(TopcoatError, match="one row to train on cannot be divided") as caught:
        tuning_data.search_rows(loaded(max_length=2048), 1)
    assert "lower data.max_length" in caught.value.problems[0].fix


def test_another_objective_is_refused(recipe):
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"objective": "classification"})})
    with pytest.raises(TopcoatError, match="a search compares losses of sft or completion"):
        tune(other, "learning_rate", "10s")


def test_the_winner_is_the_lowest_of_those_that_came_furthest():
    tried = [
        Tried(0, {}, {1: 2.0, 3: 1.8, 9: 1.5}, True),
        Tried(1, {}, {1: 1.0}, False),
        Tried(2, {}, {1: 1.9, 3: 1.7, 9: 1.4}, True),
    ]
    assert winner(tried).number == 2
    assert winner([]) is None
