"""Packed batches whose tensors stand still: what a captured graph reads, filled anew for each micro batch.

    tokens    rounded up to an eighth of the micro batch     asked rows    to an eighth of the tokens
    borders   to a power of two                              longest       to a power of two

so that a run has few shapes, each met many times. What fills a batch up is a document of its own that nothing sees; an
asked row without a label weighs 0. The shape follows from the batch and the run's settings alone: a resumed run pads
alike, and computes the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from topcoat.data.batches import PADDING, Batch
from topcoat.kernels.documents import StaticDocuments
from topcoat.kernels.row_counts import MOST_ROWS, ROUND
from topcoat.kernels.triton_ops.launch import power_of_two
from topcoat.training.objectives.hidden import filled_up

PIECES = 8
"""Tokens of a micro batch, and rows of its loss, are rounded up to such a part of the whole."""
FEWEST_BORDERS, SHORTEST = 64, 512
"""Below these all shapes are one. An empty document, or the end of a short one, costs blocks that end at once."""


@dataclass(frozen=True)
class StaticShape:
    """All that the host decides by; batches of one shape share a graph."""

    tokens: int
    asked: int
    """Rows whose logits are computed; as many as `tokens` where nearly all carry a label."""
    borders: int
    longest: int


class _Fields(NamedTuple):
    """Views into one buffer, on the host and on the device alike: a batch goes over in one copy."""

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64
    targets: Tensor  # (N,) int64
    rows: Tensor  # (N,) int64
    borders: Tensor  # (m + 1,) int32
    row_weights: Tensor  # (N,) float32
    factor: Tensor  # () float32


def shape_of(batch: Batch, targets: int, budget_tokens: int) -> StaticShape:
    """The shape of a packed batch with that many targets, in a run of micro batches of `budget_tokens`."""
    assert batch.cu_seqlens is not None
    tokens = _up(batch.input_ids.numel(), _part(budget_tokens))
    asked = _up(max(1, targets), _part(tokens))
    lengths = [*batch.cu_seqlens.diff().tolist(), tokens - batch.input_ids.numel()]
    return StaticShape(
        tokens,
        tokens if asked > MOST_ROWS * tokens else asked,
        power_of_two(max(FEWEST_BORDERS, len(lengths) + 1)),
        min(tokens, power_of_two(max(SHORTEST, *lengths))),
    )


class StaticBatch:
    """Tensors of one shape on `device`."""

    def __init__(self, shape: StaticShape, device: torch.device) -> None:
        self.shape = shape
        self._buffer = torch.zeros(sum(_sizes(shape)), dtype=torch.int64, device=device)
        self.views = _fields(self._buffer, shape)
        self.input_ids, self.position_ids = self.views.input_ids, self.views.position_ids
        self.targets, self.row_weights = self.views.targets, self.views.row_weights
        self.rows = None if shape.asked == shape.tokens else self.views.rows
        """The flat positions that are asked for; None for all."""
        self.documents = StaticDocuments(shape.tokens, self.views.borders, shape.longest)
        self.factor = self.views.factor
        """What the loss is multiplied with before the backward."""

    def fill(self, batch: Batch, found: tuple[Tensor, Tensor], factor: float) -> None:
        """Take over a packed batch that has this shape, or is smaller, and its `target_positions`."""
        assert batch.cu_seqlens is not None
        tokens = batch.input_ids.numel()
        positions, targets = found
        host = torch.empty_like(self._buffer, device="cpu")
        into = _fields(host, self.shape)
        into.input_ids.fill_(PADDING)[0, :tokens] = batch.input_ids[0]
        # nothing reads the filling; zeros, because a rotary embedding may go by the largest position of a batch
        into.position_ids.zero_()[0, :tokens] = batch.position_ids[0]
        into.borders.fill_(self.shape.tokens)[: len(batch.cu_seqlens)] = batch.cu_seqlens
        into.targets.zero_()
        into.row_weights.zero_()
        if self.rows is None:
            into.targets[positions], into.row_weights[positions] = targets, 1.0
        else:
            into.rows.copy_(filled_up(positions, self.shape.asked, self.shape.tokens))
            into.targets[: len(targets)], into.row_weights[: len(targets)] = targets, 1.0
        into.factor.fill_(factor)
        self._buffer.copy_(host)


def _sizes(shape: StaticShape) -> Sequence[int]:
    """Numbers of eight bytes that each field takes, in the order of `_Fields`."""
    halves = (-(-count // 2) for count in (shape.borders, shape.asked, 1))
    return (shape.tokens, shape.tokens, shape.asked, shape.asked, *halves)


def _fields(buffer: Tensor, shape: StaticShape) -> _Fields:
    sizes = _sizes(shape)
    parts = [buffer[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    ids, positions, targets, rows, borders, weights, factor = parts
    return _Fields(
        ids[None],
        positions[None],
        targets,
        rows,
        borders.view(torch.int32)[: shape.borders],
        weights.view(torch.float32)[: shape.asked],
        factor.view(torch.float32)[0],
    )


def _part(count: int) -> int:
    return _up(-(-count // PIECES), ROUND)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
