"""Merge a finished run: its base loaded again in float32, its adapter on it, and the proved directory written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from topcoat.adapters.attach import no_weights
from topcoat.adapters.files import load_adapter
from topcoat.adapters.settings import FullConfig, PromptConfig
from topcoat.data.labels import LABELLED
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting.merge import merge_model
from topcoat.exporting.proof import Proof
from topcoat.recipe.load import load_recipe
from topcoat.report.page import write_report
from topcoat.runs.folder import RunFolder, read_json, write_json
from topcoat.runs.labelling import put_head_of
from topcoat.runs.rounding import load_base


def merge_run(run: Path, out: Path | None = None, say: Callable[[str], None] = lambda text: None) -> tuple[Path, Proof]:
    """Merge the run in folder `run` into a Hugging Face directory (`merged/` in it unless `out` says otherwise).

    Raises TopcoatError when there is nothing to merge or `out` exists; Refused when the proof fails or the base on
    disk is not the one that was trained on.
    """
    folder = RunFolder(run)
    folder.require_run()
    recipe = load_recipe(folder.recipe, check_files=False)
    if isinstance(recipe.adapter, FullConfig):
        raise TopcoatError(
            "full fine-tuning trains the whole model: there is nothing to merge",
            where=str(run),
            fix=f"use {folder.model} as it is",
        )
    if isinstance(recipe.adapter, PromptConfig):  # before a base is loaded for nothing
        raise no_weights(recipe.adapter.method, "merged model")
    folder.require_trained(recipe.adapter)
    target = out or folder.merged
    if target.exists():
        raise TopcoatError(f"{target} exists already", where="--out", fix="name another folder, or delete this one")
    say("loading the base")
    base = load_base(recipe.model.model_copy(update={"compute_dtype": "fp32"}), folder)
    if recipe.train.objective in LABELLED:
        put_head_of(base, folder.adapter)
    adapters = load_adapter(base.model, folder.adapter, base.identity.model_dump())
    if not adapters.copies and not adapters.rows and not any(layer.changes() for layer in adapters.layers.values()):
        raise Refused("the adapter changes nothing: it is as it started", str(folder.adapter), "train it first")
    proof = merge_model(base, adapters, target, read_json(folder.probe)["prompts"], say)
    results = read_json(folder.results)
    write_json(folder.results, results | {"merge": proof.as_json() | {"path": str(target)}})
    write_report(run)
    return target, proof
