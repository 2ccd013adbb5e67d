"""Does the chosen attention compute what this architecture means? One real example is run both ways before training.

A backend may leave out a soft cap or a sliding window without a word (pitfall P08); eager is transformers' definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.errors import Refused
from topcoat.model.attention import attention_inputs
from topcoat.model.families import FAMILIES
from topcoat.model.fuse import FusedModel

TOKENS = 256  # of the example: eager attention holds T x T scores a head
KEPT = 32  # positions of a document whose logits are compared: those of all 256 tokens can be a gigabyte
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
COARSE = 5e-2  # bf16 and fp16: rounding in another order, through all layers


@torch.no_grad()
def attention_difference(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """|ours - eager| / |eager| over logits of the first `TOKENS` of `ids`, as training computes them."""
    ours = _logits(model, [ids[:TOKENS]])
    with _implementation(model, "eager"):
        eager = _logits(model, [ids[:TOKENS]])
    return _distance(ours, eager)


@torch.no_grad()
def packing_difference(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> float:
    """|packed - apart| / |apart| over the logits of two documents: 0 up to rounding where neither sees the other."""
    documents = [first[: TOKENS // 2], second[: TOKENS // 2]]
    apart = torch.cat([_logits(model, [document]) for document in documents])
    return _distance(_logits(model, documents), apart)


@torch.no_grad()
def fused_difference(fused: FusedModel, ids: Sequence[int]) -> float:
    """|fused - plain| / |plain| over the hidden states of the first `TOKENS` of `ids`, adapters as they are."""
    model = fused.model
    tokens = torch.tensor([list(ids[:TOKENS])], device=model.device)
    T = tokens.shape[1]
    inputs = attention_inputs(model, tokens, torch.arange(T, device=model.device)[None], [(0, T)])
    decoder = model.get_submodule(FAMILIES[model.config.model_type].decoder)
    plain: Tensor = decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    return _distance(fused.hidden(inputs).float(), plain.float())


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference that rounding in `dtype` explains."""
    return TOLERANCE.get(dtype, COARSE)


def require_separate_documents(
    model: PreTrainedModel, first: Sequence[int], second: Sequence[int], dtype: torch.dtype
) -> None:
    """Raises Refused where packed examples see each other: an architecture that ignores where positions restart."""
    difference = packing_difference(model, first, second)
    if not difference <= tolerance(dtype):
        raise Refused(
            f"packed examples see each other in {type(model).__name__}: their logits change by {difference:.1e} when "
            "they share a row",
            where="data.packing",
            fix="write data.packing: false",
        )


def _logits(model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> Tensor:
    """Float32 logits (N, V) of documents packed into one row, as training computes them, at `KEPT` places of each."""
    ids = [token for document in documents for token in document]
    positions = [at for document in documents for at in range(len(document))]
    spans, kept, start = [], [], 0
    for document in documents:
        spans.append((start, len(document)))
        kept += [start + at for at in _spread(len(document))]
        start += len(document)
    tokens, places = (torch.tensor([row], device=model.device) for row in (ids, positions))
    inputs, at = attention_inputs(model, tokens, places, spans), torch.tensor(kept, device=model.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, use_cache=False, logits_to_keep=at).logits[0].float()
    return model(**inputs, use_cache=False).logits[0, at].float()


def _spread(length: int) -> list[int]:
    """At most KEPT places of `length`, from the first to the last."""
    count = min(KEPT, length)
    return [at * (length - 1) // max(1, count - 1) for at in range(count)]


def _distance(ours: Tensor, theirs: Tensor) -> float:
    if not bool(theirs.isfinite().all()):
        raise Refused(
            "the model's own logits are not finite before any training",
            where="model.compute_dtype",
            fix="write model.compute_dtype: fp32, or bf16 where it was fp16; else the checkpoint is damaged",
        )
    return float((ours - theirs).norm() / theirs.norm())


def require_attention_parity(model: PreTrainedModel, ids: Sequence[int], dtype: torch.dtype) -> float:
    """The difference on one example; Raises Refused where it is more than rounding."""
    difference = attention_difference(model, ids)
    if not difference <= tolerance(dtype):
        raise Refused(
            f"attention {model.config._attn_implementation} differs from this model's own definition by "
            f"{difference:.1e} in its logits (at most {tolerance(dtype):.0e} is rounding)",
            where="model.attention",
            fix="write model.attention: eager",
        )
    return difference


@contextmanager
def _implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
