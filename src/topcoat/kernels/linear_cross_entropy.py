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

CHUNK_ROWS = 256  # rows whose logits exist at once: 256 * 49,152 * 4 bytes is 50 MB


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
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None
        for a in range(0, len(hidden), chunk_rows):
            rows, labels = hidden[a : a + chunk_rows], targets[a : a + chunk_rows, None]
            logits = (rows @ weight.T).to(wide)  # (n, V)
            if softcap is not None:
                logits = torch.tanh_(logits.div_(softcap)).mul_(softcap)
            slope = None if softcap is None or not (want_hidden or want_weight) else 1 - (logits / softcap).square_()
            lse = torch.logsumexp(logits, -1, keepdim=True)  # (n, 1)
            loss += (lse - logits.gather(1, labels)).sum()
            if not (want_hidden or want_weight):
                continue
            grad = logits.sub_(lse).exp_()  # softmax, (n, V)
            grad.scatter_add_(1, labels, torch.full_like(lse, -1.0))
            if slope is not None:
                grad.mul_(slope)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[a : a + chunk_rows])
            if grad_weight is not None:
                grad_weight += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grads[0].to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grads[0]).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
