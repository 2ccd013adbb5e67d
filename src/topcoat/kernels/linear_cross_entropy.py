"""Cross-entropy of a linear head, without the (N, V) logits: loss = sum_n lse(W h_n) - (W h_n)[y_n].

Rows are taken in chunks. For each chunk the gradient is known as soon as the logits are, so it is formed in the
forward: d loss / d h = (softmax - onehot) W, and the backward only scales it. The log-sum-exp and the loss are float32
whatever the dtype of the products. A soft cap c (Gemma 2, arXiv:2408.00118) makes the logits c * tanh(logits / c).

Source of the idea: Hsu et al. 2024 (Liger kernel), arXiv:2410.10989, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 256  # rows whose logits exist at once: 256 * 49,152 * 4 bytes is 50 MB
STEP = 32  # rows are padded to a multiple: every new shape makes oneDNN build new kernels and keep them


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """The definition: hidden (N, D), weight (V, D), targets (N,) -> the summed loss, a float32 scalar."""
    logits = hidden @ weight.T  # (N, V)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """The same in chunks of `chunk_rows`, with gradients for `hidden` and, if it trains, for `weight`."""
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, chunk_rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk_rows: int
    ) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        rows = F.pad(hidden, (0, 0, 0, -len(hidden) % STEP))  # (N', D)
        grad_hidden = torch.empty_like(rows) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        buffer = rows.new_empty(min(chunk_rows, len(rows)), len(weight))  # one for all chunks
        for a in range(0, len(rows), chunk_rows):
            chunk, labels = rows[a : a + chunk_rows], targets[a : a + chunk_rows, None]
            product = torch.mm(chunk, weight.T, out=buffer[: len(chunk)])  # (n', V)
            logits = product[: len(labels)].to(wide, copy=True)  # (n, V), without the padding
            loss += _loss_and_gradient(logits, labels, softcap, want_hidden or want_weight)
            product[: len(labels)] = logits
            product[len(labels) :] = 0
            if grad_hidden is not None:
                torch.mm(product, weight, out=grad_hidden[a : a + chunk_rows])
            if grad_weight is not None:
                grad_weight += product.T @ chunk
        ctx.save_for_backward(None if grad_hidden is None else grad_hidden[: len(hidden)], grad_weight)
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
        return grad_hidden, grad_weight, None, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor, softcap: float | None, want_gradient: bool) -> Tensor:
    """The summed loss of logits (n, V) with labels (n, 1); turns `logits` into their gradient where that is wanted."""
    if softcap is not None:
        torch.tanh_(logits.div_(softcap)).mul_(softcap)
    lse = torch.logsumexp(logits, -1, keepdim=True)  # (n, 1)
    loss = (lse - logits.gather(1, labels)).sum()
    if want_gradient:
        slope = None if softcap is None else 1 - (logits / softcap).square_()
        logits.sub_(lse).exp_()  # softmax
        logits.scatter_add_(1, labels, torch.full_like(lse, -1.0))
        if slope is not None:
            logits.mul_(slope)
    return loss
