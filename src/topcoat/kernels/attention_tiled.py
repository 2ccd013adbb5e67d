"""Attention inside documents in torch, tile by tile of the queries: on any device, in any dtype.

    dV = Pᵀ dO;  dP = dO Vᵀ;  dS = P * (dP - rowsum(dO * O));  dQ = scale * dS K;  dK = scale * dSᵀ Q

Documents of similar length are gathered into buckets. On a CPU the forward is torch's flash kernel, for its
log-sum-exp, where neither a window nor a soft cap forbids it; everything else is ours: scores rebuilt in float32,
products in the input's dtype, the masked half skipped. Measured on 2 cores with AMX, 16 documents of 128 tokens, 9
heads of 64 over 3, bf16: torch's backward 27 ms, ours 13 ms (its forward takes 2 ms).

The scores of a tile lie in a borrowed buffer: of large pieces that come and go in every layer the C library kept 50 MB
for SmolLM2-135M in float32 and 1,024 tokens.

Paper of the backward: Dao et al. 2022, arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from topcoat.kernels.attention_shape import Shape, hidden
from topcoat.kernels.dispatch import wide_dtype
from topcoat.kernels.documents import Bucket, Documents
from topcoat.kernels.scratch import scratch

TILE = 256  # queries at once: the scores of a tile stay in cache, the causal half is skipped by tile


def tiled_forward(q: Tensor, k: Tensor, v: Tensor, layout: Documents, shape: Shape, out: Tensor) -> tuple[Tensor, ...]:
    """q and out (T, H, K), k and v (T, G, K): fills `out`, returns one log-sum-exp (n, H, L) for each bucket."""
    layout.clear_gaps(out)
    lses = []
    for bucket in layout.buckets:
        parts = bucket.gather(q), bucket.gather(k), bucket.gather(v)
        flash = q.device.type == "cpu" and shape.softcap is None and not shape.windowed(bucket.length)
        answer, lse = _flash_forward(*parts, shape) if flash else _tiled_forward(*parts, shape)
        bucket.scatter(answer, out)
        lses.append(lse)
    return tuple(lses)


def tiled_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    saved: Sequence[Tensor],
    layout: Documents,
    shape: Shape,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fills dq (T, H, K), dk and dv (T, G, K) from what `tiled_forward` returned."""
    into = (dq, dk, dv)
    for gradient in into:
        layout.clear_gaps(gradient)
    for bucket, lse in zip(layout.buckets, saved, strict=True):
        for values, gradient in zip(_tiled_backward(bucket, q, k, v, out, dout, lse, shape), into, strict=True):
            bucket.scatter(values, gradient)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Torch's CPU kernel: (n, H, L, K) -> the answer and its log-sum-exp (n, H, L) in float32 or wider."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    answer, lse = flash(q, k, v, 0.0, True, scale=shape.scale)
    # the kernel returns lse as (n, H, L) with strides of (n, L, H)
    return answer, lse


def _tiled_forward(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """The same with a soft cap or a window, one tile of queries at a time."""
    n, H, L, K = q.shape
    G = k.shape[1]
    answer = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((n, H, L), dtype=wide_dtype(q.dtype))
    with scratch(_room(n * H, L, shape.window), lse.dtype, q.device) as room:
        for a, b, first in _tiles(L, shape.window):
            rows = _group(q[:, :, a:b], G)  # (n * G, H / G * (b - a), K)
            keys, values = (_merge(x[:, :, first:b]) for x in (k, v))
            scores = _scores(rows, keys, shape, a, b, first, room)  # (n * G, H / G, b - a, b - first)
            scores.masked_fill_(hidden(a, b, first, b, shape.window, q.device), -math.inf)
            tile_lse = torch.logsumexp(scores, -1, keepdim=True)
            weights = scores.sub_(tile_lse).exp_().to(q.dtype).flatten(1, 2)
            answer[:, :, a:b] = torch.bmm(weights, values).view(n, H, b - a, K)
            lse[:, :, a:b] = tile_lse.view(n, H, b - a)
    return answer, lse


def _tiled_backward(
    bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, lse: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ (n, H, L, K), dK and dV (n, G, L, K) of one bucket."""
    qs, ks, vs = bucket.gather(q), bucket.gather(k), bucket.gather(v)
    gs = bucket.gather_or_zero(grad)
    floats = wide_dtype(q.dtype)
    delta = (gs.to(floats) * bucket.gather(out)).sum(-1)  # (n, H, L)
    n, H, L, K = qs.shape
    G = ks.shape[1]
    dq = torch.empty_like(qs, memory_format=torch.contiguous_format)
    dk = torch.zeros(n * G, L, K, dtype=floats, device=q.device)
    dv = torch.zeros(n * G, L, K, dtype=floats, device=q.device)
    with scratch((2, *_room(n * H, L, shape.window)), floats, q.device) as (room, beside):
        for a, b, first in _tiles(L, shape.window):
            rows, grads = _group(qs[:, :, a:b], G), _group(gs[:, :, a:b], G)
            keys, values = (_merge(x[:, :, first:b]) for x in (ks, vs))
            weights = _scores(rows, keys, shape, a, b, first, room)  # (n * G, H / G, b - a, b - first)
            cap = _softcap_slope(weights, shape)
            weights.sub_(_rowwise(lse[:, :, a:b], G)).exp_()
            # masked after the exponential: exp of -inf takes six times as long on AVX-512
            weights.masked_fill_(hidden(a, b, first, b, shape.window, q.device), 0)
            ds = _against(grads, values, beside).view_as(weights)
            ds.sub_(_rowwise(delta[:, :, a:b], G)).mul_(weights).mul_(shape.scale)
            if cap is not None:
                ds.mul_(cap)
            weights16, ds16 = (x.to(q.dtype).flatten(1, 2) for x in (weights, ds))
            dv[:, first:b] += torch.bmm(weights16.transpose(1, 2), grads)
            dk[:, first:b] += torch.bmm(ds16.transpose(1, 2), rows)
            dq[:, :, a:b] = torch.bmm(ds16, keys).view(n, H, b - a, K)
    return dq, dk.to(q.dtype).view(n, G, L, K), dv.to(q.dtype).view(n, G, L, K)


def _room(heads: int, length: int, window: int | None) -> tuple[int]:
    """Numbers of the largest tile, for all heads of all documents."""
    queries = min(TILE, length)
    return (heads * queries * (length if window is None else min(length, queries + window - 1)),)


def _scores(rows: Tensor, keys: Tensor, shape: Shape, a: int, b: int, first: int, room: Tensor) -> Tensor:
    """Scaled and capped scores of queries a..b against keys first..b, float32 or wider, in `room`."""
    scores = _against(rows, keys, room).mul_(shape.scale)
    if shape.softcap is not None:
        scores = scores.div_(shape.softcap).tanh_().mul_(shape.softcap)
    return scores.view(len(scores), -1, b - a, b - first)


def _against(x: Tensor, y: Tensor, room: Tensor) -> Tensor:
    """x (N, a, K) times y (N, b, K) transposed, float32 or wider: (N, a, b), which lies in `room`."""
    answer = room[: x.shape[0] * x.shape[1] * y.shape[1]].view(*x.shape[:2], y.shape[1])
    with _products_of(x.dtype):
        return torch.bmm(x.to(room.dtype), y.to(room.dtype).transpose(1, 2), out=answer)


def _softcap_slope(scores: Tensor, shape: Shape) -> Tensor | None:
    """d capped / d raw = 1 - (capped / c)²."""
    if shape.softcap is None:
        return None
    return 1 - (scores / shape.softcap).square_()


def _tiles(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, first key any of them sees)."""
    for a in range(0, length, TILE):
        yield a, min(a + TILE, length), 0 if window is None else max(0, a - window + 1)


def _group(x: Tensor, groups: int) -> Tensor:
    """(n, H, l, K) -> (n * G, H / G * l, K): the queries that share a key head, side by side."""
    n, H, length, K = x.shape
    return x.reshape(n * groups, H // groups * length, K)


def _merge(x: Tensor) -> Tensor:
    """(n, G, l, K) -> (n * G, l, K)."""
    return x.reshape(-1, *x.shape[2:])


def _rowwise(x: Tensor, groups: int) -> Tensor:
    """(n, H, l) -> (n * G, H / G, l, 1)."""
    n, H, length = x.shape
    return x.reshape(n * groups, H // groups, length, 1)


@contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """Inside, float32 products of values that came from `dtype` may run on the units of `dtype`.

    For bf16 that is exact (the operands fit, the sums are float32) and twice as fast on AMX; others change nothing.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if dtype == torch.bfloat16 else before
    try:
        yield
    finally:
        matmul.fp32_precision = before
