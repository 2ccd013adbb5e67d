"""The run folder: where each file of a run lies, and the rule that one folder holds one run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topcoat.adapters.settings import AdapterConfig, FullConfig
from topcoat.errors import TopcoatError
from topcoat.files import TEMPORARY, write_file
from topcoat.json_files import read_json_object
from topcoat.run_lock import RunLock

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe: every value, nothing implied."""
        return self.path / RECIPE

    @property
    def receipt(self) -> Path:
        """Identity of base, tokenizer, template and data; versions; machine; seed."""
        return self.path / "receipt.json"

    @property
    def plan(self) -> Path:
        """The predicted bill, and beside it what was measured."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Generations on fixed validation rows at each evaluation."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """step-00000120/ and so on, each with its manifest."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The PEFT directory."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The whole model, after full fine-tuning."""
        return self.path / "model"

    @property
    def rounded(self) -> Path:
        """The integers of a base that was rounded by calibration; made before all else, read by all that follows."""
        return self.path / "rounded"

    @property
    def merged(self) -> Path:
        """Where `topcoat merge` puts the merged model unless told otherwise."""
        return self.path / "merged"

    @property
    def probe(self) -> Path:
        """Token ids of held-out prompts: what merges and exports are proved on."""
        return self.path / "probe.json"

    @property
    def results(self) -> Path:
        """Scores of base and adapter."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes here; made before anything else, and never deleted."""
        return self.path / RunLock.NAME

    def trained(self, method: AdapterConfig) -> Path:
        """What a finished run of `method` is delivered as: the whole model of full fine-tuning, else the adapter."""
        return self.model if isinstance(method, FullConfig) else self.adapter

    def holds_a_run(self) -> bool:
        """True if a run was started here."""
        return self.recipe.exists() or self.checkpoints.exists()

    def require_free(self) -> None:
        """Raises TopcoatError if the folder holds a run, or anything else but hidden files."""
        if self.path.exists() and not self.path.is_dir():
            raise TopcoatError(f"{self.path} is a file", where="output", fix="name a folder that is not there yet")
        if self.holds_a_run():
            raise TopcoatError(
                f"{self.path} holds another run",
                where="output",
                fix="add --resume to continue it, or name another output folder",
            )
        names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        spared = self.rounded.name  # a start that died while it was loading may have left it
        others = [name for name in names if not (name.startswith(".") or name == spared or TEMPORARY.search(name))]
        if others:
            raise TopcoatError(
                f"{self.path} is not empty: it holds {', '.join(sorted(others)[:3])}",
                where="output",
                fix="name a folder that is not there yet, or empty this one",
            )

    def require_run(self) -> None:
        """Raises TopcoatError unless a run was started here."""
        if not self.recipe.is_file():
            raise TopcoatError(
                f"{self.path} is no run folder: it has no {RECIPE}",
                where=str(self.path),
                fix="give the folder that `topcoat train` wrote (the recipe's `output`)",
            )

    def require_trained(self, method: AdapterConfig) -> Path:
        """`trained(method)`. Raises TopcoatError if the run has not come that far."""
        path = self.trained(method)
        if not path.is_dir():
            raise TopcoatError(
                f"the run has not finished: {path.name}/ is not there yet",
                where=str(self.path),
                fix=f"finish it first: topcoat train {self.recipe} --resume",
            )
        return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` for people and programs: indented, keys in the order given, whole or not at all.

    A figure that is no number (the perplexity of a diverged model) is written as null, since JSON has no word for it.
    """
    write_file(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the run folder. Raises TopcoatError if it is missing or damaged."""
    if not path.exists():
        raise TopcoatError(
            f"{path.name} is not in the run folder",
            where=str(path.parent),
            fix="let the run finish: `topcoat train RECIPE --resume`",
        )
    return read_json_object(path, "train again, or restore it")
