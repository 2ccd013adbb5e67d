"""GGUF files of tiny models, written with the gguf library the way llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from topcoat.model.tiny import tiny_tokenizer

ARCHITECTURES = {"gemma3_text": "gemma3", "gpt_neox": "gptneox"}


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """LlamaModel.permute of convert_hf_to_gguf.py."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def converted(arch: str, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    """What the converter of `arch` does to the Hugging Face tensor `name`."""
    if arch in ("llama", "smollm3") and "q_proj" in name:
        return permuted(value, config.num_attention_heads)
    if arch in ("llama", "smollm3") and "k_proj" in name:
        return permuted(value, config.num_key_value_heads)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if arch == "gptneox" and "query_key_value" in name:
        parts = value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:])
        return torch.cat([parts[:, i].reshape(-1, *value.shape[1:]) for i in range(3)])
    return value


def add_metadata(writer: gguf.GGUFWriter, arch: str, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if arch == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    if arch.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str = "qwen2") -> None:
    backend = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    by_id = {index: token for token, index in tiny_tokenizer().get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [3 if i < 3 else 1 if i in by_id else 5 for i in range(vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")


def blocks_of(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The matrix (O, I) in blocks of `kind`; in K types, drawn codes and scales of weights of about 0.02."""
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(array, kind)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(len(array)).integers(0, 256, (len(array), array.shape[1] // 256, size), np.uint8)
    scales = {"Q4_K": (1e-4, 7.5e-4), "Q5_K": (5e-5, 7.75e-4), "Q6_K": (2e-5,)}[
        kind.name
    ]  # d, and dmin for a mean of 0
    at = size - 2 if kind.name == "Q6_K" else 0
    blocks[..., at : at + 2 * len(scales)] = np.array(scales, np.float16).view(np.uint8)
    return blocks.reshape(len(array), -1)


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """(model, kind=F32, extra=callback, tensors={name: array}) -> path of a GGUF of that model.

    Matrices are stored as `kind`, everything else as F32. The library cannot make K blocks of values: those are drawn.
    """

    def write(
        model: PreTrainedModel,
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        extra: Callable[[gguf.GGUFWriter], None] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
        pre: str = "qwen2",
    ) -> Path:
        config = model.config
        arch = ARCHITECTURES.get(config.model_type, config.model_type)
        path = tmp_path / f"{arch}-{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        add_metadata(writer, arch, config)
        add_tokenizer(writer, config.vocab_size, pre)
        if extra is not None:
            extra(writer)
        kinds = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(kinds[arch], config.num_hidden_layers)
        tied = config.tie_word_embeddings
        for name, value in model.state_dict().items():
            if tied and name.startswith("lm_head"):
                continue
            stored = names.get_name(
                name.replace("lm_head", "embed_out") if arch == "gptneox" else name, (".weight", ".bias")
            )
            assert stored is not None, name
            array = converted(arch, name, value.float(), config).contiguous().numpy()
            quantized = blocks_of(array, kind) if array.ndim == 2 and kind.name != "F32" else array
            writer.add_tensor(stored, quantized, raw_dtype=kind if array.ndim == 2 and kind.name != "F32" else None)
        for name, array in (tensors or {}).items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
