"""Batches: which examples make one optimizer step, and the tensors a model computes at once.

A step's examples follow from (seed, epoch, step) and the batch size alone, so any step can be sought without the ones
before it, and resuming needs no state. Only then are they packed into micro batches; how is a matter of speed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topcoat.data.examples import Examples, token_arrays
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.order import Indices, Order, shuffled
from topcoat.data.pack import best_fit, group_similar
from topcoat.data.render import Example
from topcoat.kernels.row_counts import ROUND  # packed rows are filled up to a multiple

PADDING = 0  # any row of the embedding: a padded position is masked and never a target
ENOUGH_STEPS = 2000  # looked through for the worst batch


def order(seed: int, epoch: int, n: int) -> list[int]:
    """The examples 0..n-1 in the order of this epoch: a pure function, the same in every Python version."""
    return shuffled(seed, epoch, n).tolist()


class StepPlan:
    """The examples of every step of a run; steps count from 0.

    Each epoch is a new order of all examples (or of the mixture of their parts, with `weights`; see `order.py`), cut
    into steps of `batch_size` examples, or of as many as reach `batch_tokens` tokens; the last step of an epoch takes
    what is left. A fractional `epochs` keeps that share of the last epoch's steps, rounded up. `max_steps` decides the
    number of steps instead, whatever `epochs` says.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[Any],
        *,
        seed: int,
        epochs: float = 1.0,
        max_steps: int | None = None,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        part: NDArray[np.uint8] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, np.int32)
        if not len(self.lengths):
            raise ValueError("a plan needs at least one example")
        self.seed, self.batch_size, self.batch_tokens = seed, batch_size, batch_tokens
        self._order = Order(len(self.lengths), part, weights)
        self._first_step = [0]  # of each epoch known so far, and of the one behind it
        self._kept: dict[int, tuple[Indices, Indices]] = {}
        self.total_steps = max_steps if max_steps is not None else self._steps_of(epochs)

    def step_examples(self, step: int) -> list[int]:
        """Indices of the examples of one optimizer step, in the order of its epoch."""
        epoch, within = self.epoch_of(step)
        order, borders = self._epoch(epoch)
        found: list[int] = order[borders[within] : borders[within + 1]].tolist()
        return found

    def epoch_of(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the step's number within it."""
        if step < 0:
            raise IndexError(f"there is no step {step}")
        if self.batch_tokens is None:
            return divmod(step, self.steps_in(0))
        while self._first_step[-1] <= step:
            self._first_step.append(self._first_step[-1] + self.steps_in(len(self._first_step) - 1))
        epoch = bisect_right(self._first_step, step) - 1
        return epoch, step - self._first_step[epoch]

    def steps_in(self, epoch: int) -> int:
        """Steps of one whole epoch; with batch_tokens it differs between epochs."""
        if self.batch_tokens is None:
            return math.ceil(len(self.lengths) / self.batch_size)
        return len(self._epoch(epoch)[1]) - 1

    def _steps_of(self, epochs: float) -> int:
        whole = math.floor(epochs)
        share = epochs - whole
        if self.batch_tokens is None:
            steps = whole * self.steps_in(0)
        else:
            steps = sum(self.steps_in(epoch) for epoch in range(whole))
        # 1e-9: 0.1 of 30 steps are 3 steps, whatever binary fractions say
        return max(1, steps + (math.ceil(share * self.steps_in(whole) - 1e-9) if share else 0))

    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The order of an epoch, and where in it each step begins, with the end behind them."""
        if epoch not in self._kept:
            if len(self._kept) >= 2:  # the epoch in hand and the one behind it
                self._kept.pop(min(self._kept))
            order = self._order.epoch(self.seed, epoch)
            if self.batch_tokens is None:
                borders = np.arange(self.steps_in(0) + 1) * self.batch_size
            else:
                borders = _cut(self.lengths[order], self.batch_tokens)
            self._kept[epoch] = order, borders
        return self._kept[epoch]


def _cut(lengths: NDArray[np.int32], budget: int) -> Indices:
    """Where steps begin that take examples until they have `budget` tokens, with the end behind them."""
    until = np.cumsum(lengths, dtype=np.int64)
    borders = [0]
    while borders[-1] < len(lengths):
        before = int(until[borders[-1] - 1]) if borders[-1] else 0
        borders.append(min(len(lengths), int(np.searchsorted(until, before + budget)) + 1))
    return np.array(borders)


@dataclass
class Batch:
    """What a model computes at once: B rows of T positions.

    Packed (B == 1): documents side by side, positions restarting, `cu_seqlens` (N + 1,) int32 their borders, the last
    document may be filling. Padded:
    one example a row, `attention_mask` (B, T) 1 at tokens and 0 at the padding on the right. labels[b, t] is the token
    at t (not shifted) or IGNORE_INDEX; the first token of a document never counts.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None
    attention_mask: Tensor | None
    rows: list[int]
    n_target_tokens: int
    n_tokens: int
    """Tokens without padding."""
    answers: Tensor | None = None
    """What each example is labelled with (N, K) float64, where documents and not tokens are what is learned; then
    `n_target_tokens` counts examples."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            move(self.cu_seqlens),
            move(self.attention_mask),
            self.rows,
            self.n_target_tokens,
            self.n_tokens,
            self.answers,
        )


def micro_batches(
    examples: Sequence[Example],
    indices: Sequence[int],
    *,
    budget_tokens: int,
    packing: bool,
    virtual_tokens: int = 0,
) -> list[Batch]:
    """The examples at `indices` as batches of at most `budget_tokens` positions; a longer example stands alone.

    `virtual_tokens` are positions that the model will add before each example.
    """
    groups = _groups(lengths_of(examples, indices), budget_tokens, packing, virtual_tokens)
    collate = packed if packing else padded
    return [collate(examples, [indices[at] for at in group]) for group in groups]


class Batches(Sequence[Batch]):
    """The batches `micro_batches` makes of the first `n` examples, each made when it is asked for."""

    def __init__(
        self, examples: Sequence[Example], n: int, *, budget_tokens: int, packing: bool, virtual_tokens: int = 0
    ) -> None:
        self._examples, self._collate = examples, packed if packing else padded
        self._groups = _groups(lengths_of(examples, range(n)), budget_tokens, packing, virtual_tokens) if n else []

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._collate(self._examples, self._groups[index])


def lengths_of(examples: Sequence[Example], indices: Sequence[int]) -> list[int]:
    """Tokens of the examples at `indices`."""
    if isinstance(examples, Examples):
        found: list[int] = examples.lengths[np.asarray(indices, np.int64)].tolist()
        return found
    return [len(examples[index].input_ids) for index in indices]


def _groups(lengths: Sequence[int], budget_tokens: int, packing: bool, virtual_tokens: int = 0) -> list[list[int]]:
    wide = [length + virtual_tokens for length in lengths] if virtual_tokens else lengths
    return (best_fit if packing else group_similar)(wide, budget_tokens)


def packed(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """One row (1, T) of documents side by side."""
    chosen = [_arrays(examples, index) for index in indices]
    lengths = [len(ids) for ids, _ in chosen]
    tokens = sum(lengths)
    filling = -tokens % ROUND
    if filling:  # a document of its own: nothing sees it, and none of it is a target
        lengths.append(filling)
        chosen.append((np.full(filling, PADDING, np.int64), np.full(filling, IGNORE_INDEX, np.int64)))
    borders = np.cumsum([0, *lengths])
    labels = np.concatenate([labels for _, labels in chosen])  # (T,)
    answers = answers_of(examples, indices)
    return Batch(
        torch.from_numpy(np.concatenate([ids for ids, _ in chosen]))[None],
        torch.from_numpy(labels)[None],
        torch.from_numpy(np.arange(borders[-1]) - np.repeat(borders[:-1], lengths))[None],
        torch.from_numpy(borders.astype(np.int32)),
        None,
        list(indices),
        int((labels != IGNORE_INDEX).sum()) if answers is None else len(indices),
        tokens,
        answers,
    )


def padded(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """One example a row (B, T), padded on the right to the longest."""
    chosen = [_arrays(examples, index) for index in indices]
    longest = max(len(ids) for ids, _ in chosen)
    shape = (len(chosen), longest)
    ids = torch.full(shape, PADDING, dtype=torch.int64)  # (B, T)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, (own_ids, own_labels) in enumerate(chosen):
        n = len(own_ids)
        ids[row, :n] = torch.from_numpy(own_ids)
        labels[row, :n] = torch.from_numpy(own_labels)
        mask[row, :n] = 1
    positions = torch.arange(longest).expand(shape).contiguous()
    answers = answers_of(examples, indices)
    targets = int((labels != IGNORE_INDEX).sum()) if answers is None else len(indices)
    return Batch(ids, labels, positions, None, mask, list(indices), targets, int(mask.sum()), answers)


def answers_of(examples: Sequence[Example], indices: Sequence[int]) -> Tensor | None:
    """What the examples at `indices` are labelled with (N, K) float64; None where tokens are what is learned."""
    if not isinstance(examples, Examples) or not examples.labelled:
        return None
    return torch.from_numpy(examples.answers(np.asarray(indices, np.int64)))


def _arrays(examples: Sequence[Example], index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels (T,), with the first label never counting: nothing stands before it to predict it from."""
    ids, trained = token_arrays(examples, index)
    wide = ids.astype(np.int64)
    labels = np.where(trained, wide, IGNORE_INDEX)
    labels[:1] = IGNORE_INDEX
    return wide, labels


def worst_batch(
    plan: StepPlan,
    examples: Sequence[Example],
    *,
    budget_tokens: int,
    packing: bool,
    virtual_tokens: int = 0,
    targets: Sequence[int] | NDArray[Any] | None = None,
) -> Batch:
    """The micro batch with the most positions of the whole run, padding included; among equals the one with the most
    labels (`targets`, of every example), then the one with the longest example.

    Of a run with many steps, the largest of the first ENOUGH_STEPS is taken if it fills a row up to its padding.
    """
    ceiling = max(budget_tokens, int(plan.lengths.max()) + virtual_tokens)
    worst, chosen = (0, 0, 0), [0]
    for step in range(plan.total_steps):
        indices = plan.step_examples(step)
        lengths = (plan.lengths[indices] + virtual_tokens).tolist()
        for group in _groups(lengths, budget_tokens, packing):
            sizes, members = [lengths[at] for at in group], [indices[at] for at in group]
            positions = -(-sum(sizes) // ROUND) * ROUND if packing else len(sizes) * max(sizes)
            labels = 0 if targets is None else int(sum(targets[index] for index in members))
            if (positions, labels, max(sizes)) > worst:
                worst, chosen = (positions, labels, max(sizes)), members
        if step > ENOUGH_STEPS and worst[0] + ROUND > ceiling:
            break
    return (packed if packing else padded)(examples, chosen)
