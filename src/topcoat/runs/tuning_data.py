"""The rows of a search: some of the training rows, held-out ones among them, and how many of each there is time for.

Rows that the recipe holds out are not looked at: what is searched for is measured on a split of the training rows, so
the scores of the run that follows are of rows that nothing was chosen by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from topcoat.data.load import Dataset, hold_out
from topcoat.errors import TopcoatError
from topcoat.recipe.schema import Recipe
from topcoat.runs.tuning_space import Space

FULL_TRIALS = 14
"""Trials that come to their end and would fill the time; pruned ones take a ninth or a third of it."""
MEASURING = 0.2
"""Share of a trial's time for measuring it."""
FEWEST_STEPS = 9
"""So that the rungs of a trial lie apart."""
HELD_SHARE, MOST_HELD, FEWEST_HELD = 0.2, 200, 24
SALT = 7919
"""Added to the seed, so that other rows are held out than a validation share of the recipe would take."""


@dataclass(frozen=True)
class Slice:
    """The rows that every trial sees, and for how long."""

    rows: int
    held: int
    examples: float
    """Of one trial, each pass counted."""


def search_rows(data: Dataset, seed: int) -> Dataset:
    """The training rows, some of them held out for the search; the recipe's own validation rows are dropped.

    Of one document the last windows are held out. Raises TopcoatError for a single row or window.
    """
    n, contents = len(data.train), data.train.column("content")
    if n < 2:
        raise TopcoatError(
            "one row to train on cannot be divided into rows to try values on and rows to compare them by",
            "data.train",
            "add rows; of a single text lower data.max_length, so that it makes several windows",
        )
    share = min(0.2, max(0.05, MOST_HELD / n))
    if (contents == contents[0]).all():
        held = np.arange(n) >= n - max(1, round(share * n))
    else:
        held = hold_out(contents, share, seed + SALT)
    return replace(data, train=data.train.take(~held), validation=data.train.take(held))


def slice_for(data: Dataset, recipe: Recipe, space: Space, step_seconds: float, left_s: float) -> Slice:
    """As many examples as a fourteenth of the time that is left trains on, measuring included."""
    train = recipe.train
    per_step = train.batch_size
    if train.batch_tokens is not None:
        per_step = max(1, round(train.batch_tokens / float(np.mean(data.train.lengths))))
    steps = max(FEWEST_STEPS, int(left_s / FULL_TRIALS / step_seconds * (1 - MEASURING)))
    epochs = space.get("epochs")
    passes = max(float(value) for value in epochs.values()) if epochs else train.epochs
    rows = min(len(data.train), max(1, math.ceil(steps * per_step / (passes if epochs else 1))))
    examples = min(float(steps * per_step), rows * passes)
    if train.max_steps is not None:
        examples = min(examples, float(train.max_steps * per_step))
    held = min(len(data.validation), max(FEWEST_HELD, round(examples * HELD_SHARE)))
    return Slice(rows, held, examples)


def cut(data: Dataset, sliced: Slice) -> Dataset:
    """Rows drawn once and for all, in the order of the file."""
    sides = ((data.train, sliced.rows), (data.validation, sliced.held))
    train, held = (side.take(np.sort(np.random.default_rng(SALT).permutation(len(side))[:n])) for side, n in sides)
    return replace(data, train=train, validation=held)
