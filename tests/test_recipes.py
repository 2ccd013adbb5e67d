"""Every recipe that ships with the project loads, and trains a tiny model as it stands."""

from pathlib import Path

import pytest

from topcoat.recipe.load import load_recipe
from topcoat.runs.run import run

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_trains_a_tiny_model(recipe, tiny_llama, tiny_rows, tmp_path):
    overrides = [
        f"model.path={tiny_llama}",
        f"data.train={tiny_rows['train']}",
        f"output={tmp_path / 'run'}",
        "train.max_steps=2",
        "evaluate.max_new_tokens=4",
    ]
    settings = load_recipe(recipe, overrides)
    result = run(settings)
    assert result.steps == 2
    assert result.adapter.is_dir()


def test_there_are_recipes():
    assert len(RECIPES) >= 3
