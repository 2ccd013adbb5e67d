"""What every objective reads of a batch: hidden states at the positions it needs, by the fast path where there is one.

Only those positions are computed behind the last block's attention. Documents of a packed row never see each other.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.data.batches import Batch
from topcoat.kernels.row_counts import last_rows
from topcoat.model.attention import attention_inputs
from topcoat.model.fuse import FusedModel


def hidden_at(
    model: PreTrainedModel, decoder: nn.Module, batch: Batch, positions: Tensor, fused: FusedModel | None
) -> Tensor:
    """Hidden states (N, D) behind the final norm at the flat `positions` (N,) of `batch`, on the model's device."""
    rows = needed_rows(positions, batch.input_ids.numel())
    batch = batch.to(model.device)
    positions = positions.to(model.device)
    inputs = attention_inputs(model, batch.input_ids, batch.position_ids, spans(batch))
    if fused is None or not fused.ready:
        states: Tensor = decoder(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # (B * T, D)
        return states.index_select(0, positions)
    if rows is None:
        return fused.hidden(inputs).index_select(0, positions)
    return fused.hidden(inputs, rows.to(model.device))[: len(positions)]


def needed_rows(positions: Tensor, tokens: int) -> Tensor | None:
    """`positions` (N,) and as many other positions as round their number up: what the last block must compute.

    None where that is nearly all of `tokens`.
    """
    rounded = last_rows(len(positions), tokens)
    return None if rounded == tokens else filled_up(positions, rounded, tokens)


def filled_up(positions: Tensor, count: int, tokens: int) -> Tensor:
    """`positions` (N,) and behind them other positions of a batch of `tokens`, `count` in all, each once."""
    free = torch.ones(tokens, dtype=torch.bool)
    free[positions] = False
    return torch.cat([positions, free.nonzero()[: count - len(positions), 0]])


def spans(batch: Batch) -> list[tuple[int, int]]:
    """(start, length) of every document in the flat (B * T,) batch."""
    if batch.cu_seqlens is not None:
        borders = batch.cu_seqlens.tolist()
        return [(a, b - a) for a, b in pairwise(borders)]
    assert batch.attention_mask is not None
    T = batch.input_ids.shape[1]
    return [(row * T, n) for row, n in enumerate(batch.attention_mask.sum(1).tolist())]


def last_tokens(batch: Batch) -> Tensor:
    """The flat position (N,) of the last real token of each of the batch's N examples; filling is none of them."""
    ends = [start + length - 1 for start, length in spans(batch)]
    return torch.tensor(ends[: len(batch.rows)])
