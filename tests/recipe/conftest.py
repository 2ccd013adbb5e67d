"""A folder with a model directory and a data file in it, as the current directory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from topcoat.errors import TopcoatError
from topcoat.recipe.load import load_recipe_with_notes
from topcoat.recipe.schema import Recipe

BASE = "model: ./base\ndata: {train: tickets.jsonl}\noutput: runs/tickets\n"  # lines 1 to 3


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    for name in ("tickets.jsonl", "held.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(desk: Path) -> Callable[..., tuple[Recipe, list[str]]]:
    """load(text, *overrides): the recipe that BASE + text spells, and its notes."""

    def read(text: str, *overrides: str, base: str = BASE) -> tuple[Recipe, list[str]]:
        (desk / "r.yaml").write_text(base + text, encoding="utf-8")
        return load_recipe_with_notes(Path("r.yaml"), overrides)

    return read


@pytest.fixture
def refused(load: Callable[..., tuple[Recipe, list[str]]]) -> Callable[..., list[tuple[str, str, str]]]:
    """refused(text, *overrides): the problems of a recipe that must not load, as (what, where, fix)."""

    def read(text: str, *overrides: str, base: str = BASE) -> list[tuple[str, str, str]]:
        with pytest.raises(TopcoatError) as caught:
            load(text, *overrides, base=base)
        assert caught.value.exit_code == 2
        return [(problem.what, problem.where, problem.fix) for problem in caught.value.problems]

    return read
