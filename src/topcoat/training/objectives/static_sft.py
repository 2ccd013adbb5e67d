"""The loss of `sft.py` on tensors that stand still: what a graph captures (training/static_batch.py)."""

from __future__ import annotations

from torch import Tensor

from topcoat.model.attention import attention_inputs
from topcoat.model.fuse import FusedModel
from topcoat.model.head import plain_head
from topcoat.training.objectives.options import PLAIN, LossOptions
from topcoat.training.objectives.sft import head_loss
from topcoat.training.static_batch import StaticBatch


def static_sft(fused: FusedModel, batch: StaticBatch, options: LossOptions = PLAIN) -> Tensor:
    """The summed loss of the target tokens, a float32 scalar; the host decides nothing by what the tensors hold.

    Raises ValueError for a head that does more than multiply and cap.
    """
    head = plain_head(fused.model)
    if head is None:
        raise ValueError("the head does more than multiply and cap its logits")
    inputs = attention_inputs(fused.model, batch.input_ids, batch.position_ids, batch.documents)
    hidden = fused.hidden(inputs, batch.rows)  # (N, D)
    return head_loss(head, hidden, batch.targets, options, batch.row_weights)
