"""Causal attention inside each document, forward and backward.

    S = scale * Q Kᵀ;   S = c * tanh(S / c) with a soft cap c;   P = softmax(S, causal, window);   O = P V

`document_attention` works on a flat batch of documents (`kernels/documents.py`) under autograd; `attention_forward`
and `attention_backward` are its two halves, for blocks whose backward is written by hand. A path is a pair of such
halves; the first of the table PATHS that takes the tensors computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topcoat.kernels.attention_native import native_backward, native_forward, native_takes
from topcoat.kernels.attention_shape import Shape, hidden
from topcoat.kernels.attention_tiled import tiled_backward, tiled_forward
from topcoat.kernels.attention_varlen import varlen_backward, varlen_forward, varlen_takes
from topcoat.kernels.dispatch import wide_dtype
from topcoat.kernels.documents import Layout, StaticDocuments
from topcoat.kernels.native.calls import settle


@dataclass(frozen=True)
class _Path:
    """One way to compute it: whether it takes these tensors, and the two halves."""

    takes: Callable[[Tensor, Tensor, Tensor, Tensor, Any, Shape], bool]  # q, k, v, out, layout
    forward: Callable[[Tensor, Tensor, Tensor, Any, Shape, Tensor], tuple[Tensor, ...]]  # q, k, v, layout, shape, out
    backward: Callable[..., None]
    static: bool = False
    """Whether it leaves the borders to the device, which may change them under a captured graph."""


PATHS = {
    "native": _Path(native_takes, native_forward, native_backward),
    "varlen": _Path(varlen_takes, varlen_forward, varlen_backward, static=True),
    "tiled": _Path(lambda *_: True, tiled_forward, tiled_backward),
}
"""In the order in which they are asked."""


@dataclass(frozen=True)
class Saved:
    """What the forward leaves for the backward: the path that ran and its log-sum-exps, laid out as that path likes."""

    path: str
    parts: tuple[Tensor, ...]


def attention_reference(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """The definition. q (n, H, L, K), k and v (n, G, L, K) with G dividing H -> (n, H, L, K)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)).to(wide_dtype(q.dtype)) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    mask = hidden(0, q.shape[2], 0, q.shape[2], shape.window, q.device)
    return torch.softmax(scores.masked_fill(mask, -math.inf), -1).to(q.dtype) @ v


def document_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, shape: Shape) -> Tensor:
    """q (T, H, K), k and v (T, G, K), documents of the flat batch -> (T, H, K), zero where no document lies."""
    answer: Tensor = _DocumentAttention.apply(q, k, v, layout, shape)
    return answer


def attention_forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, shape: Shape, out: Tensor) -> Saved:
    """Fills `out` (T, H, K) from q (T, H, K), k and v (T, G, K), without autograd; zero where no document lies.

    All may be strided views whose last dimension is contiguous. What it returns goes to `attention_backward`.
    Raises ValueError for `StaticDocuments` that no path takes.
    """
    fixed = isinstance(layout, StaticDocuments)
    names = (n for n, path in PATHS.items() if (path.static or not fixed) and path.takes(q, k, v, out, layout, shape))
    name = next(names, None)
    if name is None:
        raise ValueError("borders on the device alone want FlashAttention: a GPU, half precision and no soft cap")
    _settle_before(name)
    return Saved(name, PATHS[name].forward(q, k, v, layout, shape, out))


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    saved: Saved,
    layout: Layout,
    shape: Shape,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fills dq (T, H, K), dk and dv (T, G, K), zero where no document lies; strided views are welcome.

    q, k, v, out and saved are those of `attention_forward`, dout (T, H, K) the gradient of out.
    """
    _settle_before(saved.path)
    PATHS[saved.path].backward(q, k, v, out, dout, saved.parts, layout, shape, dq, dk, dv)


def _settle_before(path: str) -> None:
    """Of all paths the compiled one can wait."""
    if path != "native":
        settle()


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, shape: Shape) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        saved = attention_forward(q, k, v, layout, shape, out)
        ctx.save_for_backward(q, k, v, out, *saved.parts)
        ctx.path, ctx.layout, ctx.shape = saved.path, layout, shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *parts = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        saved = Saved(ctx.path, tuple(parts))
        attention_backward(q, k, v, out, grads[0], saved, ctx.layout, ctx.shape, dq, dk, dv)
        return dq, dk, dv, None, None
