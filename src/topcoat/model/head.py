"""The output head as a matrix: what a loss without logits needs, where the architecture's head is no more than that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.model.families import FAMILIES, logit_softcap
from topcoat.quant.linear import FrozenLinear


@dataclass(frozen=True)
class Head:
    """logits = c * tanh(W decoder(x) / c), or W decoder(x) without a soft cap."""

    decoder: nn.Module
    weight: Tensor
    """(V, D): the head's, or that of the copy that trains in its place."""
    softcap: float | None


def plain_head(model: PreTrainedModel) -> Head | None:
    """The head of a family in `FAMILIES`; None for others, whose forward may scale or shift logits in its own way."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return None
    linear = model.get_submodule(family.head)
    weight = (
        linear.dense_weight(linear.compute_dtype)  # rebuilt for this one loss, then forgotten
        if isinstance(linear, FrozenLinear)
        else linear.weight
    )
    if getattr(linear, "bias", None) is not None or not isinstance(weight, Tensor):
        return None
    return Head(model.get_submodule(family.decoder), weight, logit_softcap(model.config))
