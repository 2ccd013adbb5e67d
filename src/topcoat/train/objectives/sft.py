"""Supervised fine-tuning: the summed cross-entropy of the labelled tokens, and how many there are.

The loss of a step is this sum over all its micro batches divided by the count over all of them, so that splitting a
batch another way changes nothing (pitfall P01). Only labelled positions meet the head; the logits of all tokens never
exist at once. A document's first token has nothing before it and is never a target, also inside a packed row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.data.batches import IGNORE_INDEX, Batch
from topcoat.kernels.linear_cross_entropy import linear_cross_entropy
from topcoat.model.attention import attention_inputs
from topcoat.model.families import head_of


def sft(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The summed loss of `batch`'s target tokens, a float32 scalar; `batch.n_target_tokens` says how many."""
    positions, targets = target_positions(batch)
    inputs = attention_inputs(model, batch.input_ids, batch.position_ids, batch.spans)
    head = head_of(model)
    if head is None:  # an architecture whose head does more than multiply: its own logits, then the definition
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[positions]
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    hidden = head.decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # (B * T, D)
    rows = hidden.index_select(0, positions).to(head.weight.dtype)
    return linear_cross_entropy(rows, head.weight, targets, head.softcap)


def target_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Flat positions (N,) whose next token is a target, and those tokens (N,)."""
    following = batch.labels[:, 1:]
    counts = (following != IGNORE_INDEX) & (batch.position_ids[:, 1:] != 0)
    B, T = batch.labels.shape
    positions = torch.arange(B * T).view(B, T)[:, :-1]
    return positions[counts], following[counts]


