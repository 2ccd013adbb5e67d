"""Batches: which examples make one optimizer step, and the tensors a model computes at once.

A step's examples follow from (seed, epoch, step) and the batch size alone, so any step can be sought without the ones
before it, and resuming needs no state. Only then are they packed into micro batches; how is a matter of speed.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.pack import best_fit, group_similar
from topcoat.data.render import Example

PADDING = 0  # any row of the embedding: a padded position is masked and never a target
# Packed rows are filled up to a multiple of this. Every new number of positions makes oneDNN build new kernels for all
# products of a step: measured on SmolLM2-135M, 20 MB of memory a step that stay, until its cache of 1,024 is full.
ROUND = 64


def order(seed: int, epoch: int, n: int) -> list[int]:
    """The examples 0..n-1 in the order of this epoch: a pure function, the same in every Python version."""
    draw = random.Random(f"topcoat order {seed} {epoch}").random  # a text seed is hashed; random() is a stable stream
    keys = [draw() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


class StepPlan:
    """The examples of every step of a run; steps count from 0.

    Each epoch is a new order of all examples, cut into steps of `batch_size` examples, or of as many as reach
    `batch_tokens` tokens; the last step of an epoch takes what is left. A fractional `epochs` keeps that share of the
    last epoch's steps, rounded up. `max_steps` decides the number of steps instead, whatever `epochs` says.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        seed: int,
        epochs: float = 1.0,
        max_steps: int | None = None,
        batch_size: int = 16,
        batch_tokens: int | None = None,
    ) -> None:
        if not lengths:
            raise ValueError("a plan needs at least one example")
        self.lengths = list(lengths)
        self.seed, self.batch_size, self.batch_tokens = seed, batch_size, batch_tokens
        self._first_step = [0]  # of each epoch known so far, and of the one behind it
        self._kept: dict[int, list[list[int]]] = {}
        self.total_steps = max_steps if max_steps is not None else self._steps_of(epochs)

    def step_examples(self, step: int) -> list[int]:
        """Indices of the examples of one optimizer step, in the order of its epoch."""
        epoch, within = self.epoch_of(step)
        if self.batch_tokens is None:
            return self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        return self._cut(epoch)[within]

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
        return len(self._cut(epoch))

    def _steps_of(self, epochs: float) -> int:
        whole = math.floor(epochs)
        share = epochs - whole
        if self.batch_tokens is None:
            steps = whole * self.steps_in(0)
        else:
            steps = sum(self.steps_in(epoch) for epoch in range(whole))
        # 1e-9: 0.1 of 30 steps are 3 steps, whatever binary fractions say
        return max(1, steps + (math.ceil(share * self.steps_in(whole) - 1e-9) if share else 0))

    def _order(self, epoch: int) -> list[int]:
        return self._cached(epoch, lambda: [order(self.seed, epoch, len(self.lengths))])[0]

    def _cut(self, epoch: int) -> list[list[int]]:
        return self._cached(epoch, lambda: self._cut_by_tokens(epoch))

    def _cached(self, epoch: int, make: Callable[[], list[list[int]]]) -> list[list[int]]:
        if epoch not in self._kept:
            if len(self._kept) >= 2:  # the epoch in hand and the one behind it
                self._kept.pop(min(self._kept))
            self._kept[epoch] = make()
        return self._kept[epoch]

    def _cut_by_tokens(self, epoch: int) -> list[list[int]]:
        steps: list[list[int]] = [[]]
        tokens, budget = 0, self.batch_tokens or 0
        for index in order(self.seed, epoch, len(self.lengths)):
            if tokens >= budget:
                steps.append([])
                tokens = 0
            steps[-1].append(index)
            tokens += self.lengths[index]
        return steps


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
        )


def micro_batches(
    examples: Sequence[Example], indices: Sequence[int], *, budget_tokens: int, packing: bool
) -> list[Batch]:
    """The examples at `indices` as batches of at most `budget_tokens` positions; a longer example stands alone."""
    groups = _groups([len(examples[index].input_ids) for index in indices], budget_tokens, packing)
    collate = packed if packing else padded
    return [collate(examples, [indices[at] for at in group]) for group in groups]


def _groups(lengths: Sequence[int], budget_tokens: int, packing: bool) -> list[list[int]]:
    return (best_fit if packing else group_similar)(lengths, budget_tokens)


def packed(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """One row (1, T) of documents side by side."""
    chosen = [examples[index] for index in indices]
    ids = [token for example in chosen for token in example.input_ids]
    labels = [label for example in chosen for label in _labels(example)]
    positions = [at for example in chosen for at in range(len(example.input_ids))]
    borders = [0]
    for example in chosen:
        borders.append(borders[-1] + len(example.input_ids))
    tokens = len(ids)
    filling = -tokens % ROUND
    if filling:  # a document of its own: nothing sees it, and none of it is a target
        ids += [PADDING] * filling
        labels += [IGNORE_INDEX] * filling
        positions += range(filling)
        borders.append(len(ids))
    return Batch(
        torch.tensor([ids], dtype=torch.int64),
        torch.tensor([labels], dtype=torch.int64),
        torch.tensor([positions], dtype=torch.int64),
        torch.tensor(borders, dtype=torch.int32),
        None,
        list(indices),
        len(labels) - labels.count(IGNORE_INDEX),
        tokens,
    )


def padded(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """One example a row (B, T), padded on the right to the longest."""
    chosen = [examples[index] for index in indices]
    longest = max(len(example.input_ids) for example in chosen)
    shape = (len(chosen), longest)
    ids = torch.full(shape, PADDING, dtype=torch.int64)  # (B, T)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, example in enumerate(chosen):
        n = len(example.input_ids)
        ids[row, :n] = torch.tensor(example.input_ids)
        labels[row, :n] = torch.tensor(_labels(example))
        mask[row, :n] = 1
    positions = torch.arange(longest).expand(shape).contiguous()
    targets = int((labels != IGNORE_INDEX).sum())
    return Batch(ids, labels, positions, None, mask, list(indices), targets, int(mask.sum()))


def _labels(example: Example) -> list[int]:
    """Labels with the first one never counting: nothing stands before it to predict it from."""
    return [IGNORE_INDEX, *example.labels[1:]]


def worst_batch(plan: StepPlan, examples: Sequence[Example], *, budget_tokens: int, packing: bool) -> Batch:
    """The micro batch with the most positions of the whole run; among equals the one with the longest example."""
    ceiling = max(budget_tokens, max(plan.lengths))
    worst, chosen = (0, 0), [0]
    for step in range(plan.total_steps):
        indices = plan.step_examples(step)
        lengths = [plan.lengths[index] for index in indices]
        for group in _groups(lengths, budget_tokens, packing):
            sizes = [lengths[at] for at in group]
            positions = sum(sizes) if packing else len(sizes) * max(sizes)
            if (positions, max(sizes)) > worst:
                worst, chosen = (positions, max(sizes)), [indices[at] for at in group]
        if worst[0] >= ceiling:
            break
    return (packed if packing else padded)(examples, chosen)
