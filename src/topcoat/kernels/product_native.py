"""The products of product.py in compiled code: bf16 on a CPU with AMX tiles. Nothing else makes it worth having.

native/product.c and native/outer.c hold the algorithms. Answers do not depend on the number of threads: each sum is
formed by one of them, in the order of K. Memory: for each thread one block of the right matrix, about 1.2 MB.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from topcoat.kernels.dispatch import is_bf16_rows
from topcoat.kernels.gated import ACTIVATIONS, Activation
from topcoat.kernels.native.library import Library, native_library
from topcoat.kernels.scratch import scratch

FEWEST_ROWS = 32
"""With fewer rows than a strip of tiles, packing the weight costs more than the product."""
LINE = 64  # bytes: tiles and sums begin on a cache line
_CPU = torch.device("cpu")
GATE, UNGATE = 1, 2  # enum gating of native/product.h

_TENSORS = ("out", "a", "b", "e", "f", "d", "beside")
_NUMBERS = ("m", "n", "k", "r", "transposed", "threads", "gating", "activation")


class _Product(ctypes.Structure):
    """struct product of native/product.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((f"{name}_row", ctypes.c_int64) for name in _TENSORS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("scratch", ctypes.c_void_p),
    ]


class _Outer(ctypes.Structure):
    """struct outer of native/product.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "u", "x")),
        *((name, ctypes.c_int64) for name in ("t", "r", "n", "out_row", "u_row", "x_row", "transposed", "threads")),
        ("scale", ctypes.c_float),
        ("scratch", ctypes.c_void_p),
    ]


def native_takes(rows: int, *tensors: Tensor | None) -> bool:
    """Whether the compiled code is there, and these are what it reads and writes."""
    return amx_library() is not None and rows >= FEWEST_ROWS and all(x is None or is_bf16_rows(x) for x in tensors)


def native_product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    low_rank: tuple[Tensor, Tensor] | None,
    add: Tensor | None,
    *,
    transposed: bool,
    activation: Activation | None = None,
    beside: Tensor | None = None,
    backward: bool = False,
) -> None:
    """As `product`; `activation`, `beside` and `backward` are those of its gating."""
    library = amx_library()
    assert library is not None  # native_takes said so
    e, f = low_rank or (None, None)
    read = (out, a, b, e, f, add, beside)  # as _TENSORS names them
    call = _Product(
        *[0 if x is None else x.data_ptr() for x in read],
        *[0 if x is None or x.dim() == 1 else x.stride(0) for x in read],
        len(a),
        out.shape[1],
        a.shape[1],
        0 if e is None else e.shape[1],
        transposed,
        torch.get_num_threads(),
        0 if activation is None else UNGATE if backward else GATE,
        0 if activation is None else ACTIVATIONS.index(activation),
    )  # by place: names take longer than a small product
    with scratch((library.product_bytes(ctypes.byref(call)) + LINE,), torch.uint8, _CPU) as room:
        call.scratch = _on_a_line(room)
        library.product(ctypes.byref(call))


def native_outer_sum(u: Tensor, x: Tensor) -> Tensor:
    """As `outer_sum`, in float32."""
    library = amx_library()
    assert library is not None
    out = torch.empty(u.shape[1], x.shape[1], dtype=torch.float32)
    read = (out, u, x)
    size = (len(x), u.shape[1], x.shape[1])
    call = _Outer(*[t.data_ptr() for t in read], *size, *[t.stride(0) for t in read], 0, torch.get_num_threads())
    with scratch((library.outer_bytes(ctypes.byref(call)) + LINE,), torch.uint8, _CPU) as room:
        call.scratch = _on_a_line(room)
        library.outer(ctypes.byref(call))
    return out


def _on_a_line(room: Tensor) -> int:
    """The first address of `room` on a cache line."""
    return -(-room.data_ptr() // LINE) * LINE


def amx_library() -> Library | None:
    """The compiled library where it multiplies on AMX tiles."""
    library = native_library()
    return library if library is not None and library.isa == "avx512_amx" else None
