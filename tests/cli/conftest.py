"""A finished run for the verbs that need one."""

import json
import shutil
from pathlib import Path

import pytest

from topcoat.cli.main import run


@pytest.fixture(scope="session")
def _shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(_shelf: Path, tiny_recipe, tiny_rows, tmp_path: Path):
    """finished("lora"), finished("full"): a copy of a finished run folder that knows its rows by heart."""

    def copy(method: str = "lora") -> Path:
        made = _shelf / method
        if not made.exists():
            recipe = tiny_recipe(
                made,
                train={"max_steps": 50, "batch_size": 10, "learning_rate": 1e-2 if method == "lora" else 2e-3},
                evaluate={"metrics": ["exact_match"], "max_new_tokens": 30, "every": 50},
            )
            recipe["adapter"] = {"method": method} | ({"r": 8} if method == "lora" else {})
            (_shelf / f"{method}.yaml").write_text(json.dumps(recipe))
            assert run(["train", str(_shelf / f"{method}.yaml")]) == 0
        return Path(shutil.copytree(made, tmp_path / f"{method}-run"))

    return copy
