"""Where each architecture keeps its blocks, norms and head: the table `FAMILIES`, by transformers' `model_type`.

A family in the table has paths of its own elsewhere (attention, loss, GGUF names). Any other causal model still loads:
`family_of` finds its blocks by shape, as the longest ModuleList under the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from topcoat.errors import TopcoatError


@dataclass(frozen=True)
class Family:
    """Dotted paths inside one architecture, from the model with its head."""

    decoder: str = "model"
    """The module that turns ids into the hidden states the head reads."""
    blocks: str = "model.layers"
    """ModuleList of the decoder blocks: linears in here are frozen, quantized and adapted."""
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    """The attention module, inside a block."""
    mlp: str = "mlp"
    logit_softcap: str | None = None
    """Config field with c in logits = c * tanh(logits / c)."""
    attention_softcap: str | None = None
    """The same for attention scores; only attention implementations that know it may be used (P08)."""
    norm_offset: float = 0.0
    """What the norm adds to its stored weight: Gemma multiplies by 1 + w."""


_GEMMA = {"logit_softcap": "final_logit_softcapping", "norm_offset": 1.0}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "gemma2": Family(**_GEMMA, attention_softcap="attn_logit_softcapping"),  # type: ignore[arg-type]
    "gemma3_text": Family(**_GEMMA),  # type: ignore[arg-type]
    "phi3": Family(),
    "gpt_neox": Family(
        decoder="gpt_neox",
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        attention="attention",
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of `model`: its row of `FAMILIES`, or one found from the modules of an architecture not listed.

    Raises TopcoatError if the model has no list of blocks.
    """
    known = FAMILIES.get(model.config.model_type)
    return known if known is not None else _found(model)


def _found(model: PreTrainedModel) -> Family:
    """Blocks are the longest ModuleList (the one with most parameters where two are as long); the rest follows."""
    lists = {name: found for name, found in model.named_modules() if isinstance(found, nn.ModuleList) and len(found)}
    if not lists:
        raise TopcoatError(
            f"{type(model).__name__} has no list of decoder blocks, so there is nothing to adapt",
            fix=f"use a decoder-only model, such as one of: {', '.join(FAMILIES)}",
        )
    blocks = max(lists, key=lambda name: (len(lists[name]), sum(p.numel() for p in lists[name].parameters())))
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.base_model_prefix
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    parent = model.get_submodule(blocks.rpartition(".")[0])
    norms = [name for name, module in parent.named_children() if "norm" in type(module).__name__.lower()]
    return Family(
        decoder=decoder,
        blocks=blocks,
        embedding=names.get(id(embedding), ""),
        norm=f"{blocks.rpartition('.')[0]}.{norms[-1]}" if norms else "",
        head=names.get(id(head), ""),
        attention="",
        mlp="",
    )


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of `model`, in order."""
    blocks = model.get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def logit_softcap(config: PretrainedConfig) -> float | None:
    """c of logits = c * tanh(logits / c) for this config, or None."""
    family = FAMILIES.get(config.model_type)
    return getattr(config, family.logit_softcap, None) if family and family.logit_softcap else None


def attention_softcap(config: PretrainedConfig) -> float | None:
    """c of scores = c * tanh(scores / c) for this config, or None."""
    family = FAMILIES.get(config.model_type)
    return getattr(config, family.attention_softcap, None) if family and family.attention_softcap else None
