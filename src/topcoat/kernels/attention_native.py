"""Attention inside documents in compiled code: bf16 on a CPU with AVX-512, and on AMX tiles where it has them.

It reads the strided q, k and v where they lie, one document after the other, so nothing is gathered, padded or masked
beyond the diagonal. native/attention_forward.c and native/attention_backward.c hold the algorithm. Its answers do not
depend on the number of threads. Memory: some copies of one document's heads for each thread, nothing of size L * L.

Papers: Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from topcoat.kernels.attention_shape import Shape
from topcoat.kernels.dispatch import is_bf16_rows, place
from topcoat.kernels.documents import Documents
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.library import Library, native_library
from topcoat.kernels.scratch import scratch

WIDEST = 256  # of a head


class _View(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]


_VIEWS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")


class _Attention(ctypes.Structure):
    """struct attention of native/attention.h."""

    _fields_ = [
        *((name, _View) for name in _VIEWS),
        *((name, ctypes.c_void_p) for name in ("lse", "starts", "lengths")),
        *((n, ctypes.c_int64) for n in ("documents", "tokens", "heads", "groups", "width", "window", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        ("scratch", ctypes.c_void_p),
    ]


def native_takes(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layout: Documents, shape: Shape) -> bool:
    """Whether the compiled code is there and these are what it reads and writes."""
    (T, H, K), G = q.shape, k.shape[1]
    return (
        _library() is not None
        and all(map(is_bf16_rows, (q, k, v, out)))
        and out.shape == q.shape
        and k.shape == v.shape == (T, G, K)
        and (layout.tokens == T and K <= WIDEST and H % G == 0)
        and shape.scale > 0
    )


def native_forward(q: Tensor, k: Tensor, v: Tensor, layout: Documents, shape: Shape, out: Tensor) -> tuple[Tensor, ...]:
    """q and out (T, H, K), k and v (T, G, K): fills `out`, returns the log-sum-exps (H, T) float32."""
    library = _library()
    assert library is not None  # native_takes said so
    layout.clear_gaps(out)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    call = _call(layout, shape, lse, q=q, k=k, v=v, out=out)
    with scratch((library.attention_forward_bytes(ctypes.byref(call)),), torch.uint8, q.device) as room:
        call.scratch = room.data_ptr()
        library.attention_forward(call, room, lse, layout, q, k, v, out)
    return (lse,)


def native_backward(
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
    """Fills dq (T, H, K), dk and dv (T, G, K) from what `native_forward` returned."""
    library = _library()
    assert library is not None
    for like, gradient in ((q, dq), (k, dk), (v, dv)):
        if not is_bf16_rows(gradient) or gradient.shape != like.shape:
            raise ValueError(f"a gradient must be bfloat16 of {tuple(like.shape)} with a contiguous last dimension")
        layout.clear_gaps(gradient)
    if not is_bf16_rows(dout):  # the gradient of a sum, say, has strides of 0
        settle()
        dout = dout.to(torch.bfloat16).contiguous()
    call = _call(layout, shape, saved[0], q=q, k=k, v=v, out=out, dout=dout, dq=dq, dk=dk, dv=dv)
    with scratch((library.attention_backward_bytes(ctypes.byref(call)),), torch.uint8, q.device) as room:
        call.scratch = room.data_ptr()
        library.attention_backward(call, room, saved, layout, q, k, v, out, dout, dq, dk, dv)


def _library() -> Library | None:
    library = native_library()
    return library if library is not None and library.isa.startswith("avx512") else None


def _call(layout: Documents, shape: Shape, lse: Tensor, **tensors: Tensor) -> _Attention:
    """The arguments. They hold addresses only: the caller keeps the tensors."""
    (T, H, K), G = tensors["q"].shape, tensors["k"].shape[1]
    return _Attention(
        **{name: _View(*place(x)) for name, x in tensors.items()},
        lse=lse.data_ptr(),
        starts=layout.starts.data_ptr(),
        lengths=layout.lengths.data_ptr(),
        documents=len(layout.spans),
        tokens=T,
        heads=H,
        groups=G,
        width=K,
        window=shape.window or 0,
        threads=torch.get_num_threads(),
        scale=shape.scale,
        softcap=shape.softcap or 0.0,
    )
