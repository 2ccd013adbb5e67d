"""Fixtures for every part."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


def pytest_collection_finish() -> None:
    """A million objects that imports left are no garbage: a search through them takes 0.25 s, and a run has two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the cache of the user."""
    os.environ["TOPCOAT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small public data sets beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: two random Llama blocks with a real tokenizer. Not to be written into."""
    from topcoat.model.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{"train": file of 10 rows, "validation": file of 4 others}, prompts and completions of different lengths."""
    folder = tmp_path_factory.mktemp("rows")
    words = ["coat", "model", "voice", "question", "days", "printer", "screen", "invoice", "weight", "loss"]
    words += ["step", "name", "value", "Où est la gare?"]
    rows = [
        {"prompt": f"What is {w}?", "completion": f"{w} {w[::-1]} {'and ' * (i % 4)}{i}"} for i, w in enumerate(words)
    ]
    files = {"train": rows[:10], "validation": rows[10:]}
    for name, some in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in files}


@pytest.fixture
def tiny_recipe(tiny_llama: Path, tiny_rows: dict[str, str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """tiny_recipe("run", train={"max_steps": 3}, seed=1): a recipe of 8 short steps as nested dicts.

    The first argument names the output folder, inside this test's own; keywords are merged into the sections.
    """

    def make(output: str | Path = "run", **sections: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "model": {"path": str(tiny_llama), "compute_dtype": "fp32"},
            "adapter": {"method": "lora", "r": 4},
            "data": dict(tiny_rows),
            "train": {"max_steps": 8, "batch_size": 3, "learning_rate": 3e-3},
            "evaluate": {"every": 4, "max_new_tokens": 6, "samples": 2},
            "output": str(tmp_path / output),
        }
        for name, values in sections.items():
            recipe[name] = {**recipe[name], **values} if isinstance(values, dict) else values
        return recipe

    return make


class Done(NamedTuple):
    """What a command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def topcoat(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """topcoat("doctor", "--json"): runs the command line in this process."""
    from topcoat.cli.main import run

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
