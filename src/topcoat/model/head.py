"""The output head as a matrix: what a loss without logits needs, where the architecture's head is no more than that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.model.families import FAMILIES, Family, logit_softcap
from topcoat.quant.linear import FrozenLinear


@dataclass(frozen=True)
class Head:
    """logits = c * tanh(s W decoder(x) / c), or s W decoder(x) without a soft cap."""

    decoder: nn.Module
    weight: Tensor
    """(V, D): the head's, or that of the copy that trains in its place."""
    softcap: float | None = None
    scale: float = 1.0


SCALED: dict[str, Callable[[Any], float]] = {
    "granite": lambda config: 1 / config.logits_scaling,
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
}
"""model_type -> what the logits are multiplied with, in architectures whose head is a scaled matrix at `lm_head`. They
are no families: their blocks are of their own kind, and their attention is not proved here."""


def plain_head(model: PreTrainedModel) -> Head | None:
    """The head of a family in `FAMILIES` or `SCALED`; None for others, whose forward may do more to the logits."""
    kind = model.config.model_type
    if kind not in FAMILIES and kind not in SCALED:
        return None
    family = FAMILIES.get(kind, Family())
    linear = model.get_submodule(family.head)
    weight = (
        linear.dense_weight(linear.compute_dtype)  # rebuilt for this one loss, then forgotten
        if isinstance(linear, FrozenLinear)
        else linear.weight
    )
    if getattr(linear, "bias", None) is not None or not isinstance(weight, Tensor):
        return None
    scale = SCALED[kind](model.config) if kind in SCALED else 1.0
    return Head(model.get_submodule(family.decoder), weight, logit_softcap(model.config), scale)
