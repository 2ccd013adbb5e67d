"""topcoat tune: what is wrong is said at once; a search ends with a recipe that trains."""

import json
import time
from pathlib import Path

import pytest


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> str:
    (tmp_path / "r.yaml").write_text(json.dumps(tiny_recipe("run")))
    return str(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--over", "learning_rat"], "did you mean learning_rate?"),
        (["--over", "r=0..8"], "adapter.r is 0"),
        (["--budget", "30"], "write 30m or 30s"),
        (["--budget", "soon"], "'soon' is no time"),
        (["train.epoch=1"], "train.epoch"),
        (["--trials", "0"], "trials"),
    ],
)
def test_bad_input_is_exit_code_2_in_under_two_seconds(topcoat, recipe, words, said):
    began = time.process_time()
    done = topcoat("tune", recipe, *words)
    assert time.process_time() - began < 2
    assert done.code == 2
    assert said in done.err
    assert not Path(recipe).with_name("run-tune").exists()


def test_a_folder_with_something_else_in_it_is_refused(topcoat, recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = topcoat("tune", recipe, "--output", str(tmp_path / "mine"))
    assert done.code == 2
    assert "is not empty: it holds thesis.txt" in done.err


def test_a_search_ends_with_a_recipe_that_trains(topcoat, recipe, monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    monkeypatch.setattr("topcoat.runs.tuning_data.FULL_TRIALS", 10**6)
    monkeypatch.setattr("topcoat.runs.finish.write_report", lambda folder: None)
    words = ["--over", "lr=1e-3..5e-3", "--budget", "60s", "--trials", "2", "--json"]
    done = topcoat("tune", recipe, *words)
    assert done.code == 0, done.err
    found = done.json
    assert found["trials"] == 2
    assert "best     learning_rate " in done.err
    assert found["recipe"] == str(tmp_path / "run-tune" / "winner.yaml")
    trained = topcoat("train", found["recipe"], "train.max_steps=1", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["steps"] == 1


def test_without_optuna_it_says_what_to_install(topcoat, recipe, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    done = topcoat("tune", recipe, "--budget", "5s")
    assert done.code == 2
    assert "pip install 'topcoat[tune]'" in done.err
