"""The attention implementation "topcoat": transformers' models call `kernels/attention.py` through it.

transformers lets anyone register an attention function under a name (`AttentionInterface.register`), and hands it
whatever keywords the model was called with. In training those hold `documents`, where each document lies; attention is
then computed inside each, without a mask. Without `documents` (generation, with a cache) the mask decides, as for sdpa.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from topcoat.kernels.attention import Shape, document_attention
from topcoat.kernels.documents import Documents, Layout, StaticDocuments, documents

NAME = "topcoat"


def register() -> None:
    """Make the name known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_inputs(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    where: Sequence[tuple[int, int]] | StaticDocuments,
) -> dict[str, Any]:
    """Keywords for one forward over documents of the flat (B * T,) batch, attention kept inside each; `where` they are.

    With "topcoat" their places go along; with sdpa and eager, transformers finds the borders where positions restart.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
    if model.config._attn_implementation == NAME:
        inputs["documents"] = _layout(where, input_ids)
        # a ready-made 4-D mask is passed through as it is: no (T, T) mask is built that nobody reads
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    return inputs


def _layout(where: Sequence[tuple[int, int]] | StaticDocuments, ids: Tensor) -> Layout:
    return where if isinstance(where, StaticDocuments) else documents(where, ids.numel(), ids.device)


def _attention(
    module: nn.Module,
    query: Tensor,  # (B, H, T, K)
    key: Tensor,  # (B, G, S, K)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention contract: -> (B, T, H, K), no weights."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if documents is not None:
        # under autocast (full fine-tuning) the rotary's float32 tables widen q and k, but not v
        q, k, v = (x.to(value.dtype).transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B * T, H or G, K)
        out = document_attention(q, k, v, documents, Shape(scale, sliding_window, softcap))
        return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **kwargs)
    return _capped(query, key, value, attention_mask, scale, softcap), None


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Soft-capped attention under a boolean mask (True attends), or causal without one."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh((query @ key.transpose(-1, -2)).float() * (scale / softcap))  # (B, H, T, S)
    T, S = scores.shape[-2:]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    weights = torch.softmax(scores.masked_fill(~mask[..., :S], torch.finfo(scores.dtype).min), -1).to(query.dtype)
    return (weights @ value).transpose(1, 2)
