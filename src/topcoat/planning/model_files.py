"""A model's shapes from what is at hand: its directory, its GGUF file, the hub's cache on this disk, or its name alone.

Nothing is downloaded and no weight is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.json_files import read_json_object
from topcoat.model.safetensors_header import read_folder_header
from topcoat.model.settings import HUB_ID
from topcoat.model.stored_formats import stored_formats
from topcoat.planning.architecture import FETCH, Architecture, architecture_of
from topcoat.planning.shapes import find_shape, known_model, unknown_model

_GGUF_KINDS = {"gemma3": "gemma3_text", "gptneox": "gpt_neox", "qwen3moe": "qwen3_moe"}
"""GGUF architecture -> transformers' model_type, where they differ."""
_GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def find_architecture(model: str) -> Architecture:
    """The shapes of the model that a recipe's `model.path` means.

    Raises TopcoatError if it is not here and not known by name, with the nearest names; or if its sizes are impossible.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return _from_gguf(path)
    if path.is_dir():
        return _from_directory(path)
    cached = _in_hub_cache(model)
    if cached is not None:
        return replace(_from_directory(cached.parent), name=model)
    if find_shape(model) is None:
        raise unknown_model(model)
    return known_model(model)


def _from_directory(path: Path) -> Architecture:
    file = path / "config.json"
    if file.is_file():
        facts = _config(file)
        quantized = facts.get("quantization_config")
        stored = _quantized(path) if quantized else {"stored_dtype": _plain_dtype(path, facts)}
        return replace(architecture_of(facts, str(file)), name=str(path), **stored)
    ggufs = sorted(path.glob("*.gguf"))
    adapter = (path / "adapter_config.json").is_file()
    what = "this is an adapter, not a model" if adapter else "there is no config.json here"
    fix = f"name the file: {ggufs[0]}" if ggufs else "give model.path a complete Hugging Face directory"
    raise TopcoatError(what, str(path), fix)


def shapes_here(model: str) -> Architecture | None:
    """The shapes of a model whose files are here and leave nothing to assume; None of any other, whose loading has to
    tell what is wrong with it."""
    if not Path(model).expanduser().exists() and _in_hub_cache(model) is None:
        return None
    try:
        found = find_architecture(model)
    except TopcoatError:
        return None
    return None if found.assumed or found.experts else found


def require_weights(model: str) -> None:
    """Raises TopcoatError where a model cannot be loaded because its weights are not here; a hub id can be fetched."""
    path = Path(model).expanduser()
    if path.is_dir():
        read_folder_header(path)
    elif not path.is_file() and not HUB_ID.fullmatch(model):
        what = f"{model} is known by name alone: its weights are not here"
        raise TopcoatError(what, "model.path", "give a Hugging Face directory, a .gguf file or a hub id")


def _quantized(path: Path) -> dict[str, Any]:
    """Bytes of the blocks' linears in a checkpoint that is quantized already, and the formats of all its quantized
    weights; nothing where the weights are not here."""
    try:
        tensors = read_folder_header(path)
        formats = stored_formats(tensors)
    except TopcoatError:
        return {}
    inside = [tensor for tensor in tensors if ".layers." in tensor.name or ".h." in tensor.name]
    n_bytes = sum(t.n_bytes for t in inside if len(t.shape) > 1 or not t.name.endswith((".weight", ".bias")))
    return {"stored_linear_bytes": n_bytes, "stored_formats": frozenset(formats.items())}


_PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_STORED = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp32"}
"""As safetensors names them."""


def _plain_dtype(path: Path, facts: Mapping[str, Any]) -> str | None:
    """The number format of plain weights, as config.json or else the files' headers state it."""
    said = _PLAIN.get(str(facts.get("dtype") or facts.get("torch_dtype")).removeprefix("torch."))
    if said is not None:
        return said
    try:
        found = {tensor.stored_dtype for tensor in read_folder_header(path) if len(tensor.shape) > 1}
    except TopcoatError:
        return None
    return _STORED.get(found.pop()) if len(found) == 1 else None


def _config(file: Path) -> dict[str, Any]:
    return read_json_object(file, "fetch config.json again")


def _in_hub_cache(model: str) -> Path | None:
    """config.json of a hub id that was downloaded before, the newest snapshot's."""
    if model.count("/") != 1:
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = (hub / f"models--{model.replace('/', '--')}" / "snapshots").glob("*/config.json")
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _from_gguf(path: Path) -> Architecture:
    from topcoat.model.gguf_header import read_header

    header = read_header(path)
    kind = str(header.metadata.get("general.architecture", "unknown"))
    shapes = {entry.name: entry.shape for entry in header.entries}
    facts: dict[str, Any] = {"model_type": _GGUF_KINDS.get(kind, kind)}
    for theirs, ours in _GGUF_FIELDS.items():
        value = header.metadata.get(f"{kind}.{theirs}")
        facts[ours] = value[0] if isinstance(value, list) and value else value  # a list has one value a layer
    _require_consistent(facts, shapes, path)
    facts |= {"vocab_size": shapes["token_embd.weight"][0], "tie_word_embeddings": "output.weight" not in shapes}
    facts |= {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
    if kind == "gptneox":
        facts["attention_bias"] = True
    if kind == "llama" and facts["num_local_experts"]:
        facts["model_type"] = "mixtral"
    read = architecture_of({name: value for name, value in facts.items() if value is not None}, str(path))
    inside = [entry for entry in header.entries if entry.name.startswith("blk.") and len(entry.shape) > 1]
    return replace(read, stored_linear_bytes=sum(entry.n_bytes for entry in inside), **_checked(read, shapes))


def _require_consistent(facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises TopcoatError where the tensors of a GGUF are not those of a model with these layers and this width."""
    embedding, layers, hidden = shapes.get("token_embd.weight"), facts["num_hidden_layers"], facts["hidden_size"]
    if embedding is None:
        raise TopcoatError("the file has no token_embd.weight", str(path), FETCH)
    if len(embedding) != 2 or (isinstance(hidden, int) and embedding[1] != hidden):
        what = f"token_embd.weight has the shape {embedding}, and the header says embedding_length {hidden}"
        raise TopcoatError(what, str(path), FETCH)
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blk.")}
    if isinstance(layers, int) and 0 < len(blocks) < layers:
        what = f"the header says block_count {layers}, and the file has tensors of {len(blocks)} blocks"
        raise TopcoatError(what, str(path), "fetch all parts of the model, or the file again")


def _checked(read: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the tensors of a GGUF say against its metadata: a difference means that the architecture was misread."""
    stored = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("rope_"))
    if stored == read.parameters:
        return {}
    said = f"the file's tensors have {stored:,} numbers, and its architecture as read {read.parameters:,}"
    return {"assumed": (*read.assumed, said)}
