"""The RMS norm behind the last block, whose weight does not train, as a module.

Written as torch calls it works in five float32 copies of the hidden states, which with documents of 8,192 tokens is
more than the blocks' own backward takes: 168 MB for SmolLM2-135M.

Zhang and Sennrich 2019, arXiv:1910.07467; the kernels are those of `rms_norm.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from topcoat.kernels.rms_norm import rms_norm, rms_norm_backward


class FrozenNorm(nn.Module):
    """x (..., D) -> x / rms(x) * weight; weight (D,) in float32 or wider, any offset added already."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight  # a plain tensor: it is no parameter of the model that it stands in
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Like x; the gradient of x alone."""
        n: Tensor = _FrozenNorm.apply(x, self.weight, self.eps)
        return n


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.flatten(0, -2)
        n, rstd = rms_norm(rows, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return n.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        dn = grads[0].contiguous().flatten(0, -2)
        return rms_norm_backward(dn, x.flatten(0, -2), weight, rstd).view(x.shape), None, None
