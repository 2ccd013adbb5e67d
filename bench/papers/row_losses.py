"""The loss of every validation row apart, of many rows packed together: arms are compared row by row."""

from __future__ import annotations

import torch

from topcoat.adapters.attach import Adapters
from topcoat.data.batches import Batches
from topcoat.data.load import Dataset
from topcoat.kernels.cross_entropy_rows import cross_entropy_rows_
from topcoat.model.fuse import FusedModel
from topcoat.model.head import plain_head
from topcoat.model.load import Base
from topcoat.runs.compute import precision
from topcoat.runs.scoring import Evaluating
from topcoat.training.objectives.hidden import hidden_at
from topcoat.training.objectives.sft import target_positions

TOGETHER = 1024
"""Tokens of a pack."""

Losses = list[tuple[float, int]]


@torch.no_grad()
def row_losses(base: Base, adapters: Adapters, data: Dataset, fused: FusedModel | None = None) -> Losses:
    """Summed loss and number of target tokens of each row; as `sft` sums them, but told apart."""
    rows, head = data.validation, plain_head(base.model)
    assert head is not None
    found: dict[int, tuple[float, int]] = {}
    packs = Batches(
        rows, len(rows), budget_tokens=TOGETHER, packing=True, virtual_tokens=adapters.config.virtual_tokens
    )
    with Evaluating(base.model):
        for batch in packs:
            positions, targets = target_positions(batch)
            with precision(base, adapters)():
                hidden = hidden_at(base.model, head.decoder, batch, positions, fused)  # (N, D)
            logits = hidden.to(head.weight.dtype) @ head.weight.T  # (N, V)
            losses = cross_entropy_rows_(logits, targets, head.softcap, want_gradient=False)  # (N,)
            assert batch.cu_seqlens is not None
            owners = torch.bucketize(positions, batch.cu_seqlens[1:], right=True)  # the document of each position
            for at, row in enumerate(batch.rows):
                own = losses[owners == at]
                found[row] = (float(own.sum(dtype=torch.float64)), len(own))
    return [found[row] for row in range(len(rows))]
