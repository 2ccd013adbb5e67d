"""GGUF's tensor names and layouts against those of transformers, by GGUF architecture.

Three architectures store something else than the checkpoint they were converted from:
    llama, smollm3   rows of q and k permuted for rotary pairs (2i, 2i+1):  (H, 2, K/2) -> (H, K/2, 2)
    gemma2, gemma3   every norm weight plus 1, as llama.cpp multiplies by w and not by 1 + w
    gptneox          the fused q, k, v of each head regrouped:  (H, 3, K) -> (3, H, K)
`restore` undoes them. Facts: llama.cpp, convert_hf_to_gguf.py (LlamaModel.permute, Gemma2Model, GPTNeoXModel).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PretrainedConfig

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

Restore = Callable[[str, Tensor, PretrainedConfig], Tensor]


def _as_stored(name: str, values: Tensor, config: PretrainedConfig) -> Tensor:
    return values


def _unpermute(name: str, values: Tensor, config: PretrainedConfig) -> Tensor:
    """Rows of q and k (and their biases) back from (H, K/2, 2) to (H, 2, K/2)."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or values.shape[0] % (2 * heads):
        return values
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(values.shape)


def _norm_minus_one(name: str, values: Tensor, config: PretrainedConfig) -> Tensor:
    return values - 1 if name.endswith("norm.weight") else values


def _regroup_qkv(name: str, values: Tensor, config: PretrainedConfig) -> Tensor:
    """Rows of the fused q, k, v (and their bias) back from (3, H, K) to (H, 3, K)."""
    heads = config.num_attention_heads
    if ".attn_qkv." not in name or values.shape[0] % (3 * heads):
        return values
    return values.unflatten(0, (3, heads, -1)).transpose(0, 1).reshape(values.shape)


@dataclass(frozen=True)
class GgufFamily:
    """How one GGUF architecture spells its tensors."""

    model_type: str
    """Of transformers."""
    block: dict[str, str] = field(default_factory=lambda: _BLOCK)
    top: dict[str, str] = field(default_factory=lambda: _TOP)
    blocks: str = "model.layers"
    restore: Restore = _as_stored
    """(GGUF name, values, config) -> values as transformers has them."""


GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("llama", restore=_unpermute),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3", _BLOCK | _HEAD_NORMS),
    "smollm3": GgufFamily("smollm3", restore=_unpermute),
    "gemma2": GgufFamily("gemma2", _BLOCK | _GEMMA_NORMS, restore=_norm_minus_one),
    "gemma3": GgufFamily("gemma3_text", _BLOCK | _GEMMA_NORMS | _HEAD_NORMS, restore=_norm_minus_one),
    "phi3": GgufFamily("phi3", _BLOCK | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gptneox": GgufFamily(
        "gpt_neox",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "lm_head"},
        "gpt_neox.layers",
        _regroup_qkv,
    ),
}
"""By `general.architecture`."""

ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are settings in transformers' eyes: gguf_config.py reads them."""


def hf_name(family: GgufFamily, name: str) -> str | None:
    """transformers' name for the GGUF tensor `name`, or None if the architecture has no such tensor."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None
    layer, module, kind = found.groups()
    if layer is None:
        return f"{family.top[module]}.{kind}" if module in family.top else None
    return f"{family.blocks}.{layer}.{family.block[module]}.{kind}" if module in family.block else None
