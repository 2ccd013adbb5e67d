"""The table OBJECTIVES: what a run can learn. An entry is the loss, and the positions whose hidden states it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from topcoat.data.batches import Batch
from topcoat.model.fuse import FusedModel
from topcoat.training.objectives.hidden import last_tokens
from topcoat.training.objectives.labels import classification, regression
from topcoat.training.objectives.options import LossOptions
from topcoat.training.objectives.sft import sft, target_positions

Loss = Callable[[PreTrainedModel, Batch, FusedModel | None, LossOptions], Tensor]


class Objective(NamedTuple):
    """`loss(model, batch, fused, options)` is the summed loss of the batch, of which `n_target_tokens` count.

    `positions(batch)` are the flat positions (N,) whose hidden states it reads: what plans count.
    """

    loss: Loss
    positions: Callable[[Batch], Tensor]


def _predicting(batch: Batch) -> Tensor:
    return target_positions(batch)[0]


OBJECTIVES: dict[str, Objective] = {
    "sft": Objective(sft, _predicting),
    "completion": Objective(sft, _predicting),  # what differs is the rows: `data/` makes every token of them a target
    "classification": Objective(classification, last_tokens),
    "regression": Objective(regression, last_tokens),
}
