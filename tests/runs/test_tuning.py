"""Whole searches on a tiny model: what they see, what they leave, and how they go on."""

import json
import re
import time
from pathlib import Path

import pytest

from topcoat.data.load import load_data
from topcoat.errors import Interrupted, TopcoatError
from topcoat.model.load import load_model
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.runs import tuning_data, tuning_range, tuning_trial
from topcoat.runs.tuning import tune

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
    real = tuning_trial.attach

    def refusing(model, config, *rest, **more):
        if config.r == 8:
            raise TopcoatError("rank 8 is refused here")
        return real(model, config, *rest, **more)

    monkeypatch.setattr(tuning_trial, "attach", refusing)
    tuned = tune(recipe, "r=4/8,learning_rate=1e-3/2e-3", "90s", trials=2)
    assert {trial.values["r"] for trial in tuned.tried} == {4}
    assert tuned.best.values["r"] == 4


def test_full_fine_tuning_is_searched_on_a_base_that_is_loaded_again(tiny_recipe, rows, monkeypatch):
    made = recipe_from_dict(tiny_recipe("run", adapter={"method": "full"}, data=dict(rows)) | {"adapter": "full"})
    tuned = tune(made, "learning_rate=0.005/0.006", "90s", trials=2)
    one, two = (trial.losses[1] for trial in tuned.tried)
    assert abs(one - two) < 0.5, "the second trial began with what the first had learned"


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
