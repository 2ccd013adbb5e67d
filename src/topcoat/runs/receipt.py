"""receipt.json: the identity of everything that went into a run, so that two runs can be told apart or called equal."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from topcoat.data.load import Dataset
from topcoat.errors import Problem, TopcoatError
from topcoat.files import sha256_file
from topcoat.model.load import Base
from topcoat.recipe.schema import Recipe

LIBRARIES = ("topcoat", "torch", "transformers", "safetensors", "gguf", "tokenizers", "numpy", "bitsandbytes")
# Settings that may differ between a run and its continuation: they change no number of the training.
# Of files it is the content that counts, and that is in the receipt: a moved file is the same file.
FREE_ON_RESUME = (
    "output",
    "guidance.silence",
    "train.keep_checkpoints",
    "train.save_every",
    "train.report_to",
    "train.optimizer_folder",
    "model.path",
    "model.chat_template",
    "data.train",
)


def receipt(recipe: Recipe, base: Base, data: Dataset) -> dict[str, Any]:
    """What this run is made of. `run_id` is drawn anew; everything else follows from the inputs and the machine."""
    return {
        "run_id": secrets.token_hex(8),
        "base": base.identity.model_dump(),
        "data": data_identity(recipe),
        "examples": examples_identity(data),
        "quantization": recipe.model.quantization.model_dump() if recipe.model.quantization else None,
        "compute_dtype": str(base.compute_dtype).removeprefix("torch."),
        "device": str(base.device),
        "seed": recipe.seed,
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else None,
        },
    }


def data_identity(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the data files, by their part in the recipe."""
    files = {name: file for name, (file, _) in zip(_parts(recipe), recipe.data.train_files, strict=True)}
    if isinstance(recipe.data.validation, str):
        files["validation"] = recipe.data.validation
    return {part: sha256_file(Path(file)) for part, file in files.items()}


def _parts(recipe: Recipe) -> list[str]:
    """The names of the training files by their part in the recipe."""
    n = len(recipe.data.train_files)
    return ["train"] if n == 1 else [f"mixture.{number}" for number in range(n)]


def examples_identity(data: Dataset) -> str:
    """SHA-256 of all that decides what is trained and validated, token by token.

    The files alone do not decide it: a template that writes today's date renders other tokens tomorrow.
    """
    return data.identity()


def checkpoint_identity(recipe: Recipe, written: dict[str, Any]) -> dict[str, str]:
    """What a checkpoint is bound to: it is refused when any of this changes."""
    base = written["base"]
    return {
        "base model": base["base"],
        "model config": base["config"],
        "tokenizer": base["tokenizer"],
        "chat template": base["chat_template"],
        "compute dtype": written["compute_dtype"],
        "optimizer": recipe.train.optimizer,
        "data": _hash(written["data"]),
        "examples": written["examples"],
        "recipe": _hash(decisive(recipe)),
    }


def require_same_recipe(started: Recipe, now: Recipe, where: str) -> None:
    """Raises TopcoatError listing every setting that changed and would change the numbers of the run."""
    before, after = decisive(started), decisive(now)
    problems = [
        Problem(
            f"{key} was {_show(before.get(key))} when the run began and is {_show(after.get(key))} now",
            where,
            f"write {key}={_show(before.get(key))} to continue, or name another output for a new run",
        )
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if problems:
        raise TopcoatError.gather(problems)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of every setting that decides the numbers of the run."""
    whole = flat(recipe).items()
    values = {k: value for k, value in whole if k not in FREE_ON_RESUME and not k.startswith("data.checks.")}
    if isinstance(recipe.data.validation, str):
        values["data.validation"] = "a file"
    return values


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, for every value of the recipe."""

    def walk(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= walk(inner, f"{path}.{key}" if path else key)
        return found

    return walk(recipe.model_dump(mode="json"), "")


def _show(value: Any) -> str:
    return json.dumps(value)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
