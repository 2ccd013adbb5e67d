"""Does the chosen attention compute what this architecture means? One real example is run both ways before training.

A backend may leave out a soft cap or a sliding window without a word (pitfall P08); eager is transformers' definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.errors import Refused
from topcoat.model.attention import attention_inputs

TOKENS = 256  # of the example: eager attention holds T x T scores a head
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
COARSE = 5e-2  # bf16 and fp16: rounding in another order, through all layers


@torch.no_grad()
def attention_difference(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """|ours - eager| / |eager| over the logits of the first `TOKENS` of `ids`, as training computes them."""
    tokens = torch.tensor([list(ids[:TOKENS])], device=model.device)
    positions = torch.arange(tokens.shape[1], device=model.device)[None]

    def logits() -> Tensor:
        inputs = attention_inputs(model, tokens, positions, [(0, tokens.shape[1])])
        return model(**inputs, use_cache=False).logits.float()

    ours = logits()
    with _attention(model, "eager"):
        eager = logits()
    return float((ours - eager).norm() / eager.norm())


def require_attention_parity(model: PreTrainedModel, ids: Sequence[int], dtype: torch.dtype) -> float:
    """The difference on one example; Raises Refused where it is more than rounding."""
    difference = attention_difference(model, ids)
    tolerance = TOLERANCE.get(dtype, COARSE)
    if not difference <= tolerance:
        raise Refused(
            f"attention {model.config._attn_implementation} differs from this model's own definition by "
            f"{difference:.1e} in its logits (at most {tolerance:.0e} is rounding)",
            where="model.attention",
            fix="write model.attention: eager",
        )
    return difference


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
