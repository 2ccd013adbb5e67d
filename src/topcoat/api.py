"""The verbs as Python functions: the same meaning, the same errors, nothing printed unless a listener is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topcoat.exporting.proof import Proof
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.recipe.schema import Recipe
from topcoat.runs.exporting import Export, export_run
from topcoat.runs.listener import Listener
from topcoat.runs.merging import merge_run
from topcoat.runs.run import Result, run
from topcoat.runs.tuning import Tuned
from topcoat.runs.tuning import tune as search


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, resume: bool = False, listener: Listener | None = None
) -> Result:
    """Train from a recipe: a `Recipe`, a dict of the same keys, or the path of a YAML file.

    Leaves a complete run folder at `recipe.output` and returns where it is with the scores of base and adapter. Raises
    TopcoatError for wrong input, Refused where the run would be dishonest, Interrupted after a signal (work saved).
    """
    return run(_settings(recipe), resume=resume, listener=listener)


def tune(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    over: str,
    budget: str,
    *,
    output: str | Path | None = None,
    trials: int | None = None,
    listener: Listener | None = None,
) -> Tuned:
    """Search over settings, such as "learning_rate,r=8/16", for a time such as "30m"; see `runs/tuning.py`.

    The recipe that won is at `.recipe` of what comes back. Raises TopcoatError for wrong input, Refused where no trial
    was measured, Interrupted after a signal (the same call continues).
    """
    folder = None if output is None else Path(output)
    return search(_settings(recipe), over, budget, output=folder, trials=trials, listener=listener)


def _settings(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return recipe_from_dict(dict(recipe))
    return load_recipe(Path(recipe))


def load(model: ModelSettings | str | Path) -> Base:
    """A frozen model with its tokenizer and identity, from settings or from a path or hub id.

    Raises TopcoatError for a checkpoint that is missing, damaged or not supported.
    """
    return load_model(model if isinstance(model, ModelSettings) else ModelSettings(path=str(model)))


def merge(run: str | Path, out: str | Path | None = None) -> tuple[Path, Proof]:
    """Merge a finished run into one Hugging Face directory; returns it and the proof that it computes the same.

    Raises TopcoatError when there is nothing to merge or `out` exists; Refused, with nothing written, when the merged
    logits differ from base + adapter by more than rounding.
    """
    return merge_run(Path(run), None if out is None else Path(out))


def export(run: str | Path, to: str, output: str | Path | None = None, type: str | None = None) -> tuple[Path, Export]:
    """Export a finished run to gguf, gguf-lora or peft; returns the folder and what was written, with its proof.

    Raises TopcoatError for what cannot be exported so; Refused, with nothing written, when the file does not give back
    what was trained.
    """
    return export_run(Path(run), to, None if output is None else Path(output), type)
