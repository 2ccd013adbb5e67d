"""The products of product.py in compiled code: bf16 on a CPU with AMX tiles. Nothing else makes it worth having.

native/product.c and native/outer.c hold the algorithms. Answers do not depend on the number of threads: each sum is
formed by one of them, in the order of K. Memory: for each thread one block of the right matrix, about 1.2 MB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from topcoat.kernels.dispatch import is_bf16_rows
from topcoat.kernels.gated import ACTIVATIONS, Activation
from topcoat.kernels.native.library import Library, native_library
from topcoat.kernels.scratch import scratch

FEWEST_ROWS = 32
"""With fewer rows than a strip of tiles, packing the weight costs more than the product."""
LINE = 64  # bytes: tiles and sums begin on a cache line
GATE, UNGATE = 1, 2  # enum gating of native/product.c

_TENSORS = ("out", "a", "b", "e", "f", "d", "beside")
_NUMBERS = ("m", "n", "k", "r", "transposed", "threads", "gating", "activation")


class _Product(ctypes.Structure):
    """struct product of native/product.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((f"{name}_row", ctypes.c_int64) for name in _TENSORS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("scratch", ctypes.c_void_p),
    ]


class _Outer(ctypes.Structure):
    """struct outer of native/outer.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "u", "x")),
        *((name, ctypes.c_int64) for name in ("t", "r", "n", "out_row", "u_row", "x_row", "threads")),
        ("scratch", ctypes.c_void_p),
    ]


def native_takes(rows: int, *tensors: Tensor | None) -> bool:
    """Whether the compiled code is there, and these are what it reads and writes."""
    return _library() is not None and rows >= FEWEST_ROWS and all(x is None or is_bf16_rows(x) for x in tensors)


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
    library = _library()
    assert library is not None  # native_takes said so
    named = dict(zip(_TENSORS, (out, a, b, *(low_rank or (None, None)), add, beside), strict=True))
    call = _Product(
        **{name: 0 if x is None else x.data_ptr() for name, x in named.items()},
        **{f"{name}_row": 0 if x is None or x.dim() == 1 else x.stride(0) for name, x in named.items()},
        m=len(a),
        n=out.shape[1],
        k=a.shape[1],
        r=0 if low_rank is None else low_rank[0].shape[1],
        transposed=transposed,
        threads=torch.get_num_threads(),
        gating=0 if activation is None else UNGATE if backward else GATE,
        activation=0 if activation is None else ACTIVATIONS.index(activation),
    )
    with _room(library.product_bytes(ctypes.byref(call))) as call.scratch:
        library.product(ctypes.byref(call))


def native_outer_sum(u: Tensor, x: Tensor) -> Tensor:
    """As `outer_sum`, in float32."""
    library = _library()
    assert library is not None
    out = torch.empty(u.shape[1], x.shape[1], dtype=torch.float32)
    call = _Outer(
        **{name: tensor.data_ptr() for name, tensor in (("out", out), ("u", u), ("x", x))},
        **{f"{name}_row": tensor.stride(0) for name, tensor in (("out", out), ("u", u), ("x", x))},
        t=len(x),
        r=u.shape[1],
        n=x.shape[1],
        threads=torch.get_num_threads(),
    )
    with _room(library.outer_bytes(ctypes.byref(call))) as call.scratch:
        library.outer(ctypes.byref(call))
    return out


@contextmanager
def _room(size: int) -> Iterator[int]:
    """The address of `size` bytes on a cache line."""
    with scratch((size + LINE,), torch.uint8, torch.device("cpu")) as room:
        yield -(-room.data_ptr() // LINE) * LINE


def _library() -> Library | None:
    library = native_library()
    return library if library is not None and library.isa == "avx512_amx" else None
