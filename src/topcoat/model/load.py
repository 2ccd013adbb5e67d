"""A checkpoint directory or a GGUF -> a frozen model, one tensor in memory at a time.

The model is transformers' own class for the config; what differs is how it is filled (fill.py), that the linears inside
its blocks are FrozenLinear in any number format, and that nothing in it trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topcoat.errors import TopcoatError
from topcoat.model.attention import NAME, register
from topcoat.model.families import FAMILIES, attention_softcap
from topcoat.model.fill import fill
from topcoat.model.identity import Identity, hash_config, hash_text, hash_tokenizer
from topcoat.model.rounded import open_rounded
from topcoat.model.score import LabelHead
from topcoat.model.settings import ModelSettings
from topcoat.model.skeleton import build_skeleton, check_sizes
from topcoat.model.source import Source, open_source
from topcoat.model.tokenizers import check_vocabulary, set_chat_template
from topcoat.quant.dense import DTYPES
from topcoat.quant.settings import DenseConfig

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Base:
    """A loaded base model and all that is known about it."""

    model: PreTrainedModel
    """Frozen, in eval mode; linears inside the blocks are FrozenLinear, the rest plain modules in compute dtype."""
    tokenizer: PreTrainedTokenizerBase
    """With the one chat template in effect."""
    identity: Identity
    settings: ModelSettings
    compute_dtype: torch.dtype
    device: torch.device
    source: Source
    head: LabelHead | None = None
    """What the head says, where it is one of labels or numbers (`score.py`) in place of the one of tokens."""

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding: token ids go below this."""
        return embedding_rows(self.model)

    @property
    def context_length(self) -> int:
        """Positions the model was made for; very large where its config says none."""
        return context_length(self.source.config)


def context_length(config: PretrainedConfig) -> int:
    """Positions a model of this config was made for; very large where the config says none."""
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def load_model(settings: ModelSettings, rounded: Path | None = None) -> Base:
    """The base model that `settings` describe; `rounded` is the folder of weights that calibration made of it.

    Raises TopcoatError for a checkpoint, a device or a dtype that cannot be used.
    """
    device = resolve_device(settings.device)
    dtype = resolve_compute_dtype(settings.compute_dtype, device)
    stored = settings.quantization or DenseConfig(format=_NAMES[dtype])
    source = open_source(settings)
    check_sizes(source.config, [tensor.shape for tensor in source.tensors()], str(source.path))
    tokenizer = source.tokenizer()
    set_chat_template(tokenizer, settings.chat_template)
    model = build_skeleton(source.config, dtype, resolve_attention(settings, source.config))
    check_vocabulary(tokenizer, embedding_rows(model), str(source.path))
    base = fill(model, source, stored, dtype, device, open_rounded(rounded, stored))
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to in a decorator mypy cannot see through
    _set_generation(model, source)
    identity = Identity(
        base=base,
        config=hash_config(source.config_facts()),
        tokenizer=hash_tokenizer(tokenizer),
        chat_template=hash_text(str(tokenizer.chat_template)),
        architecture=type(model).__name__,
        source=settings.path,
    )
    return Base(model, tokenizer, identity, settings, dtype, device, source)


def embedding_rows(model: PreTrainedModel) -> int:
    """V, the rows of the input embedding; may be more than the tokenizer has tokens."""
    rows = model.get_input_embeddings().num_embeddings
    assert isinstance(rows, int)
    return rows


def resolve_device(name: str) -> torch.device:
    """The device `name` stands for; auto is the first GPU, else the CPU. Raises TopcoatError if it is not there."""
    present = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return torch.device(next(kind for kind, count in present.items() if count))
    device = torch.device(name)
    if (device.index or 0) >= present[device.type]:
        others = ", ".join(kind for kind, count in present.items() if count)
        raise TopcoatError(
            f"there is no device {name} here: {present[device.type]} {device.type} devices found",
            where="model.device",
            fix=f"use one of: auto, {others}",
        )
    return device


def resolve_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype `name` stands for on `device`; auto is bf16 where the device computes it natively, else fp32.

    Raises TopcoatError if the device cannot compute in the dtype asked for.
    """
    if name == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    dtype = DTYPES[name]
    try:
        probe = torch.ones(8, 8, dtype=dtype, device=device)
        torch.mm(probe, probe)
    except RuntimeError as error:
        raise TopcoatError(
            f"{device} cannot compute in {name}: {str(error).splitlines()[0]}",
            where="model.compute_dtype",
            fix="use compute_dtype: auto",
        ) from error
    return dtype


def _has_native_bf16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """CUDA from compute capability 8.0 (Ampere); x86 with AMX or AVX-512 BF16; Arm with BF16; XPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return device.type == "xpu"
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:  # not Linux: nothing says so
        return False
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split()
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & set(flags))


def resolve_attention(settings: ModelSettings, config: PretrainedConfig) -> str:
    """The name of the attention implementation, as transformers registers it; auto is topcoat where it is known to fit.

    Raises TopcoatError where the one asked for would compute something else than the architecture (P08).
    """
    capped = attention_softcap(config) is not None
    dropout = float(getattr(config, "attention_dropout", 0.0) or 0.0)
    fits = config.model_type in FAMILIES and not dropout
    register()
    if settings.attention == "auto":
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        has_sdpa = kind._supports_sdpa
        return NAME if fits else "sdpa" if has_sdpa and not capped else "eager"
    if settings.attention == "sdpa" and capped:
        raise TopcoatError(
            f"sdpa would leave out the attention soft cap of {config.model_type}",
            where="model.attention",
            fix="use attention: auto",
        )
    if settings.attention == NAME and not fits:
        why = f"drops attention weights ({dropout})" if dropout else "is not one of the families it is proved on"
        raise TopcoatError(
            f"attention: topcoat does not compute {config.model_type}, which {why}",
            where="model.attention",
            fix="use attention: auto",
        )
    return settings.attention


def _set_generation(model: PreTrainedModel, source: Source) -> None:
    """End tokens and sampling defaults as the checkpoint has them, on the model."""
    stored = dict(source.generation_defaults())
    if stored:
        model.generation_config = GenerationConfig.from_dict(stored)
