"""A transformers config -> GGUF metadata and rotary tables: what model/gguf_config.py reads back.

GGUF has fewer places than a config. Before anything is written the metadata is read back, and a setting that would
come out as another one stops the export: such a file would load everywhere and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from topcoat.errors import Problem, TopcoatError
from topcoat.exporting.gguf_file import Slot
from topcoat.exporting.gguf_layout import GgufLayout
from topcoat.model.gguf_config import read_gguf_config
from topcoat.model.gguf_header import GgufEntry, GgufHeader

_COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}
# Facts that a model computes with, under transformers' names; a file must give each of them back.
_COMPUTED = (
    *_COMMON.values(),
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "layer_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "hidden_activation",
    "layer_types",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_parallel_residual",
    "no_rope_layers",
    "rope_parameters",
)
_TABLES = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}


def model_metadata(layout: GgufLayout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keys of the model itself, and its rotary tables by tensor name, each (P,) float32.

    Raises TopcoatError for rotary scaling that GGUF has no word for.
    """
    config, arch = layout.config, layout.architecture
    facts = config.to_dict()
    found: dict[str, Any] = {key: facts[ours] for key, ours in _COMMON.items()}
    heads = config.num_attention_heads
    width = facts.get("head_dim") or config.hidden_size // heads
    rope, local = _rotary(facts)
    rotated = int(width * rope.get("partial_rotary_factor", 1.0))
    found |= {"rope.dimension_count": rotated, "rope.freq_base": float(rope["rope_theta"])}
    if arch == "gptneox":
        found["attention.layer_norm_epsilon"] = float(config.layer_norm_eps)
        found["use_parallel_residual"] = bool(config.use_parallel_residual)
    else:
        found["attention.head_count_kv"] = facts.get("num_key_value_heads") or heads
        found["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
        found |= {"attention.key_length": width, "attention.value_length": width}
    if facts.get("sliding_window") and facts.get("use_sliding_window", True):
        found["attention.sliding_window"] = facts["sliding_window"]
    for key, ours in (("attn_logit", "attn_logit_softcapping"), ("final_logit", "final_logit_softcapping")):
        if facts.get(ours):
            found[f"{key}_softcapping"] = float(facts[ours])
    if local is not None:
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    scaling, tables = _scaling(rope, facts, rotated)
    return {f"{arch}.{key}": value for key, value in (found | scaling).items()}, tables


def _rotary(facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Rotary settings of the full layers, and of the sliding ones where they have their own."""
    rope = facts["rope_parameters"]
    if "full_attention" in rope:
        return rope["full_attention"], rope["sliding_attention"]
    return rope, None


def _scaling(rope: Mapping[str, Any], facts: Mapping[str, Any], width: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How positions are stretched, as keys and as tables."""
    kind = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings") or facts.get("original_max_position_embeddings")
    if kind == "default":
        return ({"rope.scaling.original_context_length": original} if original else {}), {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, {}
    if kind == "yarn":
        keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"])}
        return keys | ({"rope.scaling.original_context_length": original} if original else {}), {}
    if kind == "llama3":
        return {}, {"rope_freqs.weight": _llama3_divisors(rope, width)}
    if kind == "longrope" and original:
        tables = {name: torch.tensor(rope[key], dtype=torch.float32) for key, name in _TABLES.items()}
        stretch = max(1.0, facts["max_position_embeddings"] / original)
        usual = math.sqrt(1 + math.log(stretch) / math.log(original))
        attention = float(rope.get("attention_factor") or usual)
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": attention}, tables
    raise TopcoatError(
        f"GGUF has no word for rotary scaling of the kind {kind!r}",
        where="config.json rope_parameters",
        fix="merge it for transformers and vLLM instead: topcoat merge",
    )


def _llama3_divisors(rope: Mapping[str, Any], width: int) -> Tensor:
    """What Llama 3 divides each rotary frequency by: 1 for short wavelengths, `factor` for long ones."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / width)
        smooth = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(divisors, dtype=torch.float32)


def require_same_model(
    layout: GgufLayout, metadata: Mapping[str, Any], slots: Mapping[str, Slot], tables: Mapping[str, Tensor]
) -> None:
    """Raises TopcoatError naming every setting that a reader of this file would take to be another."""
    entries = tuple(GgufEntry(name, Kind[slot.kind], slot.shape, 0, slot.n_bytes) for name, slot in slots.items())
    named = {"general.architecture": layout.architecture, **metadata}
    header = GgufHeader(Path("the GGUF file"), named, entries)
    read = read_gguf_config(header, {name: table.tolist() for name, table in tables.items()}).to_dict()
    own = layout.config.to_dict()
    if read["model_type"] != own["model_type"]:  # Mistral without a window, which goes under llama
        read.pop("layer_types", None)
    problems = [
        Problem(
            f"GGUF's {layout.architecture} cannot say that {key} is {_short(own[key])}: "
            f"a reader takes {_short(read[key])}",
            where="config.json",
            fix="merge it for transformers and vLLM instead: topcoat merge",
        )
        for key in _COMPUTED
        if key in own and key in read and not _same(own[key], read[key])
    ]
    if problems:
        raise TopcoatError.gather(problems)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(one: Any, other: Any) -> bool:
    """Equal up to float32; in mappings, keys that only one side states are left to it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_same(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5)
    return one == other or not (one or other)
