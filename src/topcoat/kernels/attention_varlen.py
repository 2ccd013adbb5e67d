"""Attention inside documents on a GPU: FlashAttention over borders, as torch.nn.attention.varlen calls it.

The two operators are called themselves, because `varlen_attn` gives the log-sum-exp but keeps its backward to autograd.
Positions outside all documents are runs of their own (`Documents.borders`), so that no gather is needed; what was
computed there is cleared afterwards. Nothing waits for the GPU.

Paper: Dao 2023, arXiv:2307.08691.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from topcoat.kernels.attention_shape import Shape
from topcoat.kernels.documents import Layout

WIDEST = 256  # of a head, and a multiple of 8: FlashAttention-2's limits


def varlen_takes(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layout: Layout, shape: Shape) -> bool:
    """Whether FlashAttention-2 runs these: half precision, compute capability 8 or more, no soft cap."""
    (T, H, K), G = q.shape, k.shape[1]
    return (
        q.is_cuda
        and torch.version.hip is None
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype == k.dtype == v.dtype
        and k.shape == v.shape == (T, G, K)
        and (layout.tokens == T and K % 8 == 0 and K <= WIDEST and H % G == 0)
        and shape.softcap is None
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, shape: Shape, out: Tensor) -> tuple[Tensor, ...]:
    """q and out (T, H, K), k and v (T, G, K): fills `out`, returns what `varlen_backward` wants."""
    causal, options = _visible(shape, layout)
    borders, longest = layout.borders, layout.longest
    answer, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, borders, borders, longest, longest, 0.0, causal, False, **options
    )
    out.copy_(answer)
    layout.clear_gaps(out)
    return lse, state, unused


def varlen_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    saved: Sequence[Tensor],
    layout: Layout,
    shape: Shape,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fills dq (T, H, K), dk and dv (T, G, K) from what `varlen_forward` returned."""
    causal, options = _visible(shape, layout)
    borders, longest = layout.borders, layout.longest
    lse, state, unused = saved
    parts = torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, borders, borders, longest, longest, 0.0, causal, state, unused, **options
    )
    for values, gradient in zip(parts, (dq, dk, dv), strict=True):
        gradient.copy_(values)
        layout.clear_gaps(gradient)


def _visible(shape: Shape, layout: Layout) -> tuple[bool, dict[str, Any]]:
    """FlashAttention's causal flag, its scale and its window: positions to the left and right, -1 without limit."""
    windowed = shape.windowed(layout.longest)
    left = shape.window - 1 if windowed and shape.window is not None else -1
    return not windowed, {"scale": shape.scale, "window_size_left": left, "window_size_right": 0}
