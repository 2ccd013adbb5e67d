"""The output head as a matrix: what a loss without logits needs, where the architecture's head is no more than that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.model.families import FAMILIES, logit_softcap


@dataclass(frozen=True)
class Head:
    """logits = c * tanh(W decoder(x) / c), or W decoder(x) without a soft cap."""

    decoder: nn.Module
    linear: nn.Module
    """Has `weight` (V, D) and no bias: the head itself, or the copy that trains in its place."""
    softcap: float | None


def plain_head(model: PreTrainedModel) -> Head | None:
    """The head of a family in `FAMILIES`; None for others, whose forward may scale or shift logits in its own way."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return None
    linear = model.get_submodule(family.head)
    if getattr(linear, "bias", None) is not None or not isinstance(linear.weight, Tensor):
        return None
    return Head(model.get_submodule(family.decoder), linear, logit_softcap(model.config))
