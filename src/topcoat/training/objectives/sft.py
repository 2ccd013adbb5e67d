"""The token objectives: the summed cross-entropy of the labelled tokens, and how many there are.

The loss of a step is this sum over all its micro batches divided by the count over all of them, so that splitting a
batch another way changes nothing (pitfall P01). Only labelled positions meet the head; the logits of all tokens never
exist at once. A document's first token has nothing before it and is never a target, also inside a packed row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.data.batches import IGNORE_INDEX, Batch
from topcoat.kernels.linear_cross_entropy import linear_cross_entropy
from topcoat.model.attention import attention_inputs
from topcoat.model.fuse import FusedModel
from topcoat.model.head import Head, plain_head
from topcoat.training.objectives.hidden import hidden_at, spans
from topcoat.training.objectives.options import PLAIN, LossOptions


def sft(model: PreTrainedModel, batch: Batch, fused: FusedModel | None = None, options: LossOptions = PLAIN) -> Tensor:
    """The summed loss of `batch`'s target tokens, a float32 scalar; `batch.n_target_tokens` says how many."""
    positions, targets = target_positions(batch)
    head = plain_head(model)
    if head is None:  # a head that does more than multiply and cap: the model's own logits, then the definition
        batch = batch.to(model.device)
        inputs = attention_inputs(model, batch.input_ids, batch.position_ids, spans(batch))
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[positions.to(model.device)]
        targets = targets.to(model.device)
        return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=options.label_smoothing)
    hidden = hidden_at(model, head.decoder, batch, positions, fused)  # (N, D)
    return head_loss(head, hidden, targets.to(model.device), options)


def head_loss(
    head: Head, hidden: Tensor, targets: Tensor, options: LossOptions, row_weights: Tensor | None = None
) -> Tensor:
    """hidden (N, D) and targets (N,) on one device -> the summed loss, each row times its weight (N,) if it has one."""
    return linear_cross_entropy(
        hidden.to(head.weight.dtype),
        head.weight,
        targets,
        head.softcap,
        logit_scale=head.scale,
        label_smoothing=options.label_smoothing,
        row_weights=row_weights,
    )


def target_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Flat positions (N,) whose next token is a target, and those tokens (N,)."""
    following = batch.labels[:, 1:]
    counts = (following != IGNORE_INDEX) & (batch.position_ids[:, 1:] != 0)
    B, T = batch.labels.shape
    positions = torch.arange(B * T, device=following.device).view(B, T)[:, :-1]
    return positions[counts], following[counts]
