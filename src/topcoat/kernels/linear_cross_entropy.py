"""Cross-entropy of a linear head, without the (N, V) logits: loss = sum_n w_n (lse(W h_n) - (W h_n)[y_n]).

Rows are taken in chunks. For each chunk the gradient is known as soon as the logits are (`cross_entropy_rows.py` writes
it over them), so it is formed in the forward: d loss / d h = (softmax - onehot) W, and the backward only scales it. The
log-sum-exp and the loss are float32 whatever the dtype of the products. A soft cap c (Gemma 2, arXiv:2408.00118) makes
the logits c * tanh(logits / c); a scale (Cohere, Granite) multiplies them before that. Label smoothing e (Szegedy et
al. 2015, arXiv:1512.00567, section 7) makes the target (1 - e) onehot(y) + e / V. The weights w are 1 unless given; 0
leaves a row out whose number must not change.

Source of the idea: Hsu et al. 2024 (Liger kernel), arXiv:2410.10989, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from topcoat.kernels.cross_entropy_rows import cross_entropy_rows_
from topcoat.kernels.dispatch import wide_dtype
from topcoat.kernels.loss_chunks import loss_rows
from topcoat.kernels.product import product
from topcoat.kernels.row_counts import ROUND
from topcoat.kernels.scratch import scratch


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Tensor:
    """The definition: hidden (N, D), weight (V, D), targets (N,), row_weights (N,) -> the loss, a float32 scalar."""
    logits = hidden @ weight.T  # (N, V)
    logits = logits.to(wide_dtype(logits.dtype)) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (losses if row_weights is None else losses * row_weights).sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Tensor:
    """The same in chunks of `chunk_rows`, with gradients for `hidden` and, if it trains, for `weight`."""
    rows = chunk_rows or loss_rows(len(hidden), len(weight), hidden.dtype.itemsize)
    training = torch.is_grad_enabled()
    shape = softcap, logit_scale, label_smoothing
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, row_weights, shape, rows, training)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None,
        shape: tuple[float | None, float, float],
        chunk_rows: int,
        training: bool,
    ) -> Tensor:
        wide = wide_dtype(hidden.dtype)
        want_hidden, want_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        rows = F.pad(hidden, (0, 0, 0, -len(hidden) % ROUND)) if len(hidden) % ROUND else hidden  # (N', D)
        if row_weights is not None:
            row_weights = F.pad(row_weights, (0, len(rows) - len(hidden)))  # (N',)
        grad_hidden = torch.empty_like(rows) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        with scratch((min(chunk_rows, len(rows)), len(weight)), rows.dtype, rows.device) as buffer:
            for a in range(0, len(rows), chunk_rows):
                chunk, labels = rows[a : a + chunk_rows], targets[a : a + chunk_rows]
                logits = product(chunk, weight, buffer[: len(chunk)], transposed=True)  # (n', V)
                asked = logits[: len(labels)]  # (n, V), without the padding
                losses = cross_entropy_rows_(asked, labels, *shape, want_hidden or want_weight)  # (n,)
                counts = None if row_weights is None else row_weights[a : a + chunk_rows]  # (n',)
                loss += _weighted(losses, counts).sum(dtype=wide)
                logits[len(labels) :].zero_()
                if grad_hidden is not None:
                    product(logits, weight, out=grad_hidden[a : a + chunk_rows])
                if grad_weight is not None:
                    grad_weight += logits.T @ _weighted(chunk, counts)
        if grad_hidden is not None:  # here, because rows of the (N, D) gradient are much smaller than those of logits
            grad_hidden = _weighted(grad_hidden, row_weights)[: len(hidden)]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grads[0].to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grads[0]).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _weighted(rows: Tensor, counts: Tensor | None) -> Tensor:
    """rows (n, ...) times the first n counts, in the dtype of `rows`; 0 where the count is 0, whatever stood there."""
    if counts is None:
        return rows
    counts = counts[: len(rows)].view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype)
    return torch.where(counts == 0, torch.zeros_like(rows), rows * counts)
