"""Mean loss and perplexity of a model on labelled examples: sums only, by the loss and the batches of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from topcoat.data.batches import Batch


@torch.no_grad()
def mean_loss(
    loss: Callable[[Batch], Tensor], batches: Iterable[Batch], check: Callable[[], None] | None = None
) -> float:
    """Summed loss over all target tokens divided by their number, in nats; NaN if there are none.

    `check` is called between batches and may raise to leave.
    """
    total, count = 0.0, 0
    for batch in batches:
        if check is not None:
            check()
        total += float(loss(batch))
        count += batch.n_target_tokens
    return total / count if count else math.nan


def perplexity(mean: float) -> float:
    """exp of the mean loss; infinity where that overflows."""
    return math.inf if mean >= 700 else math.exp(mean)
