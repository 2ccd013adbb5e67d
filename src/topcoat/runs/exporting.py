"""Export a finished run: its base loaded again in float32, its adapter on it, and a proved file for another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from topcoat.adapters.attach import Adapters, attach, no_weights
from topcoat.adapters.files import load_adapter
from topcoat.adapters.settings import FullConfig, PromptConfig
from topcoat.data.labels import LABELLED
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting.choices import type_of
from topcoat.exporting.gguf_adapter import AdapterExport, export_gguf_lora
from topcoat.exporting.gguf_model import GgufExport, export_gguf
from topcoat.exporting.peft import PeftExport, export_peft
from topcoat.model.load import Base, load_model
from topcoat.recipe.load import load_recipe
from topcoat.recipe.schema import Recipe
from topcoat.runs.folder import RunFolder, read_json, write_json
from topcoat.runs.labelling import put_head_of
from topcoat.runs.rounding import load_base

Export = GgufExport | AdapterExport | PeftExport


def export_run(
    run: Path,
    to: str,
    output: Path | None = None,
    type: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, Export]:
    """Export the run in folder `run` to `to` (gguf, gguf-lora, peft); returns the folder written and what was proved.

    `output` is `run`/`to` unless named. `type` is that of the matrices, such as q8_0; None chooses.

    Raises TopcoatError when there is nothing to export, the method cannot be, or `output` exists; Refused, with nothing
    left behind, when the proof fails or the base on disk is not the one that was trained on.
    """
    kind = type_of(to, type)
    folder = RunFolder(run)
    folder.require_run()
    recipe = load_recipe(folder.recipe, check_files=False)
    folder.require_trained(recipe.adapter)
    if isinstance(recipe.adapter, FullConfig) and to != "gguf":
        raise TopcoatError(
            "full fine-tuning trains the whole model: there is no adapter to export",
            where=f"--to {to}",
            fix=f"write --to gguf, or use {folder.model} as it is",
        )
    if isinstance(recipe.adapter, PromptConfig) and to != "peft":  # before a base is loaded for nothing
        raise no_weights(recipe.adapter.method, {"gguf": "GGUF model", "gguf-lora": "GGUF adapter"}[to])
    if recipe.train.objective in LABELLED and to != "peft":
        raise TopcoatError(
            "the run trained a head of labels, and a GGUF holds a model that writes text",
            where=f"--to {to}",
            fix="topcoat merge writes a directory that transformers loads, --to peft the adapter",
        )
    target = output or folder.path / to
    if target.exists():
        raise TopcoatError(f"{target} exists already", where="--output", fix="name another folder, or delete this one")
    if target.suffix == ".gguf":
        raise TopcoatError(
            f"{target.name} would be a folder: it holds the file, its proof and the base's licence",
            where="--output",
            fix=f"name it {target.stem}",
        )
    prompts = read_json(folder.probe)["prompts"]
    say("loading the base")
    base, adapters = _trained(folder, recipe)
    done: Export
    if to == "gguf":
        done = export_gguf(base, adapters, target, kind, prompts, say)
    elif to == "gguf-lora":
        done = export_gguf_lora(base, adapters, target, kind, prompts, say)
    else:
        done = export_peft(base, adapters, target, prompts, say)
    results = read_json(folder.results)
    exports = dict(results.get("exports") or {}) | {to: done.as_json()}
    write_json(folder.results, results | {"exports": exports})
    return target, done


def _trained(folder: RunFolder, recipe: Recipe) -> tuple[Base, Adapters]:
    """Base and adapter of the run, computing in float32; the trained model itself after full fine-tuning."""
    settings = recipe.model.model_copy(update={"compute_dtype": "fp32"})
    if isinstance(recipe.adapter, FullConfig):
        own = {"path": str(folder.model), "quantization": None, "chat_template": None, "revision": None}
        base = load_model(settings.model_copy(update=own))
        return base, attach(base.model, recipe.adapter)
    base = load_base(settings, folder)
    if recipe.train.objective in LABELLED:
        put_head_of(base, folder.adapter)
    adapters = load_adapter(base.model, folder.adapter, base.identity.model_dump())
    only_layers = adapters.layers and not adapters.copies and not adapters.rows
    if only_layers and not any(layer.changes() for layer in adapters.layers.values()):
        raise Refused("the adapter changes nothing: it is as it started", str(folder.adapter), "train it first")
    return base, adapters
