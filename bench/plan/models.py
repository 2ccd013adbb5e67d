"""Model directories and files of rows for the grid, made once and kept: SmolLM2-135M, and shapes with random weights.

A shape's numbers are those of the public config.json (`planning/shapes.py`), its weights one random million tiled over
every tensor: a run takes the memory that the real one would. Its tokenizer is SmolLM2's with as many tokens
as the shape's own has, since a tokenizer's tables grow with its vocabulary.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topcoat.planning.shapes import find_shape

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS: dict[str, str] = {
    "135m": "smollm2-135m",
    "360m": "SmolLM2-360M",
    "0.5b": "Qwen2.5-0.5B",
    "0.6b": "Qwen3-0.6B",
    "1b": "Llama-3.2-1B",
    "1.5b": "Qwen2.5-1.5B",
    "1.7b": "SmolLM2-1.7B",
    "gemma3-1b": "gemma-3-1b-it",
}
"""Key of a point -> the checkpoint of `bench.prepare`, or a row of the table of shapes."""
LARGEST = 2**20  # random numbers that are drawn


def model_folder(name: str, cache: Path) -> Path:
    """The directory of a model of the grid, made if it is not there."""
    source = cache / "models" / "smollm2-135m" / "base"
    if not (source / "config.json").exists():
        from bench.prepare import make_model

        make_model("smollm2-135m", cache)
    if name == "135m":
        return source
    folder = cache / "models" / f"plan-{name}"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"making {MODELS[name]} with random weights in {folder}", flush=True)
        _make(MODELS[name], source, folder)
        (folder / "made").touch()
    return folder


def _make(shape_name: str, source: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = find_shape(shape_name)
    assert shape is not None
    facts = shape.facts()
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    draws = 0.02 * torch.randn(LARGEST, generator=torch.Generator().manual_seed(0))
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    tensors = {
        name: _filled(draws.bfloat16(), tuple(parameter.shape), name)
        for name, parameter in model.named_parameters()
        if name not in tied
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "generation")):
            shutil.copy(file, folder / file.name)
    _widen(folder / "tokenizer.json", facts["vocab_size"])


def _filled(draws: Any, shape: tuple[int, ...], name: str) -> Any:
    """A tensor of `shape`: ones for a norm, zeros for a bias, else the random numbers over and over."""
    if len(shape) == 1:
        return draws.new_full(shape, float("norm" in name))
    numbers = shape[0] * shape[1]
    return draws.repeat(-(-numbers // LARGEST))[:numbers].view(shape).contiguous()


def _widen(file: Path, vocab: int) -> None:
    """Add merges of two tokens each to a byte-level BPE until it has `vocab` tokens."""
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tokens: dict[str, int] = stored["model"]["vocab"]
    merges: list[Any] = stored["model"]["merges"]
    as_pair = not merges or not isinstance(merges[0], str)
    special = {added["content"] for added in stored["added_tokens"]}
    for first, second in _pairs([token for token in tokens if token not in special]):
        if len(tokens) >= vocab:
            break
        if first + second not in tokens:
            tokens[first + second] = len(tokens)
            merges.append([first, second] if as_pair else f"{first} {second}")
    file.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def _pairs(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of tokens: rare with frequent ones, so that text is cut as before."""
    for second in tokens[300:400]:
        for first in reversed(tokens):
            yield first, second


def rows_file(length: int, cache: Path) -> Path:
    """Texts of WikiText that are longer than `length` tokens each; alpaca's chat rows for 0."""
    if not length:
        return DATA / "alpaca_train.jsonl"
    file = cache / "plan" / f"rows-{length}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (DATA / "wikitext2_valid.txt").read_text(encoding="utf-8")
        size = 8 * length  # characters; a token of prose has four to five
        pieces = [text[at : at + size] for at in range(0, len(text) - size, max(size // 2, 64))][:64]
        file.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    return file


if __name__ == "__main__":
    print(model_folder(sys.argv[1], Path(sys.argv[3])))
    print(rows_file(int(sys.argv[2]), Path(sys.argv[3])))
