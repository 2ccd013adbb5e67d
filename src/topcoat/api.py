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
from topcoat.runs.listener import Listener
from topcoat.runs.merging import merge_run
from topcoat.runs.run import Result, run


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, resume: bool = False, listener: Listener | None = None
) -> Result:
    """Train from a recipe: a `Recipe`, a dict of the same keys, or the path of a YAML file.

    Leaves a complete run folder at `recipe.output` and returns where it is with the scores of base and adapter. Raises
    TopcoatError for wrong input, Refused where the run would be dishonest, Interrupted after a signal (work saved).
    """
    if isinstance(recipe, Recipe):
        settings = recipe
    elif isinstance(recipe, Mapping):
        settings = recipe_from_dict(dict(recipe))
    else:
        settings = load_recipe(Path(recipe))
    return run(settings, resume=resume, listener=listener)


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
