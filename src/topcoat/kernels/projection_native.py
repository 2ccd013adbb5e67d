"""A projection of a block, forward or backward, as one call of compiled code: bf16 on a CPU with AMX tiles.

native/projection.c calls the products that projection.py would, in its order; what is saved is the way back to Python
between them. An adapter reads and writes its own rows of the output only, so nothing is multiplied by the zeros of a
block-diagonal B, and its gradients come out in float32, scaled and in the shape of what trains.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topcoat.kernels.dispatch import is_bf16_rows
from topcoat.kernels.gated import ACTIVATIONS
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.structures import fields
from topcoat.kernels.product_native import FEWEST_ROWS, GATE, UNGATE, amx_library
from topcoat.kernels.scratch import scratch

if TYPE_CHECKING:
    from topcoat.kernels.product import Gating
    from topcoat.kernels.projection import LowRank

_CPU = torch.device("cpu")


class _Stack(ctypes.Structure):
    """struct stack of native/projection.c."""

    _fields_ = fields("*a *b in out rank count *first *rows *ranks *grad_a *grad_b *scale *master_a *master_b")


class _Ahead(ctypes.Structure):
    """struct ahead of native/projection.c."""

    _fields_ = fields("*stack threads tokens *w w_row *x *y *h h_known *add add_row *beside gating activation *scratch")


class _Back(ctypes.Structure):
    """struct back of native/projection.c."""

    _fields_ = fields("*stack threads tokens *w w_row *g *dx *u *x *h *grads *beside gating activation *scratch")


@dataclass(frozen=True)
class _Gradient:
    """Where one factor's gradient lies among the numbers of a backward; `numbers` is 0 for a factor that is frozen."""

    numbers: int
    shape: tuple[int, int]


def _gradient(shape: tuple[int, int], trains: bool) -> _Gradient:
    return _Gradient(shape[0] * shape[1] if trains else 0, shape)


class NativeProjection:
    """The compiled code's view of one stack of adapters: what stays the same from step to step."""

    def __init__(self, A: Tensor, B: Tensor, adapters: tuple[LowRank, ...]) -> None:
        """A (R, I) and B (O, R) bf16 are filled anew before each forward; their addresses stay."""
        self._held = A, B
        self.trains = tuple(adapter.trains for adapter in adapters)
        (rank, width), rows = A.shape, [len(adapter.lora_B) for adapter in adapters]
        ranks = [len(adapter.lora_A) for adapter in adapters]
        shapes_A, shapes_B = ((r, width) for r in ranks), zip(rows, ranks, strict=True)
        self._gradients = [  # all of A first: they follow each other, and one product forms them
            *(_gradient(shape, train_A) for shape, (train_A, _) in zip(shapes_A, self.trains, strict=True)),
            *(_gradient(shape, train_B) for shape, (_, train_B) in zip(shapes_B, self.trains, strict=True)),
        ]
        places, total = [], 0
        for gradient in self._gradients:
            places.append(total if gradient.numbers else -1)
            total += gradient.numbers
        self._sizes, count = [gradient.numbers for gradient in self._gradients], len(adapters)
        numbers = ctypes.c_int64 * count
        self._lists = (
            numbers(*[a.first for a in adapters]),
            numbers(*rows),
            numbers(*ranks),
            numbers(*places[:count]),
            numbers(*places[count:]),
            (ctypes.c_float * count)(*[a.scale for a in adapters]),
            (ctypes.c_void_p * count)(),
            (ctypes.c_void_p * count)(),
        )
        at = [ctypes.addressof(values) for values in self._lists]
        self._stack = _Stack(A.data_ptr(), B.data_ptr(), width, len(B), rank, count, *at)
        self._at, self._by_reference = ctypes.addressof(self._stack), ctypes.byref(self._stack)
        self._room: dict[tuple[int, int], int] = {}

    @staticmethod
    def takes(A: Tensor, adapters: tuple[LowRank, ...]) -> bool:
        """Whether the compiled code is there for a stacked A, and these adapters train in float32."""
        found = amx_library() is not None and is_bf16_rows(A)
        return found and all(a.lora_A.dtype == a.lora_B.dtype == torch.float32 for a in adapters)

    def fill(self, adapters: tuple[LowRank, ...]) -> None:
        """Copy what trains into A and B, the scales in B."""
        library = amx_library()
        assert library is not None
        masters = [a.wide_A().contiguous() for a in adapters], [a.lora_B.contiguous() for a in adapters]
        assert all(tensor.dtype == torch.float32 for tensor in (*masters[0], *masters[1]))
        for addresses, tensors in zip(self._lists[-2:], masters, strict=True):
            addresses[:] = [tensor.data_ptr() for tensor in tensors]
        library.projection_fill(self._by_reference, torch.get_num_threads())

    def forward(
        self,
        x: Tensor,
        W: Tensor,
        out: Tensor,
        h: Tensor,
        add: Tensor | None,
        gating: Gating | None,
        *,
        known: bool,
    ) -> None:
        """As `Projection.forward`; h is filled unless it is `known`."""
        library, threads, tokens = amx_library(), torch.get_num_threads(), len(x)
        assert library is not None  # compiled_takes said so
        W = _rows(W)
        gated_here = gating if out.shape[1] % 32 == 0 else None  # 16 columns of the gate at a time
        with scratch((self._bytes(threads, tokens),), torch.uint8, _CPU) as room:
            call = _Ahead(
                self._at,
                threads,
                tokens,
                W.data_ptr(),
                W.stride(0),
                x.data_ptr(),
                out.data_ptr(),
                h.data_ptr(),
                known,
                0 if add is None else add.data_ptr(),
                0 if add is None or add.dim() == 1 else add.stride(0),
                *_gate(gated_here, GATE),
                room.data_ptr(),
            )  # by place: names take longer than a small product
            library.projection_forward(call, self, W, x, out, h, add, gating, room)
        if gating is not None and gated_here is None:
            gating.apply(out)

    def backward(
        self, g: Tensor, W: Tensor | None, dx: Tensor | None, u: Tensor, x: Tensor, h: Tensor, gating: Gating | None
    ) -> list[Tensor | None]:
        """As `Projection.backward`, with u (T, R) for its use: gradients of every A (r, I), then of every B (O, r)."""
        library, threads, tokens = amx_library(), torch.get_num_threads(), len(g)
        assert library is not None
        W = None if W is None else _rows(W)
        grads = torch.empty(sum(self._sizes), dtype=torch.float32)
        with scratch((self._bytes(threads, tokens),), torch.uint8, _CPU) as room:
            call = _Back(
                self._at,
                threads,
                tokens,
                0 if W is None else W.data_ptr(),
                0 if W is None else W.stride(0),
                g.data_ptr(),
                0 if dx is None else dx.data_ptr(),
                u.data_ptr(),
                x.data_ptr(),
                h.data_ptr(),
                grads.data_ptr(),
                *_gate(gating, UNGATE),
                room.data_ptr(),
            )
            library.projection_backward(call, self, W, g, dx, u, x, h, grads, gating, room)
        parts = grads.split_with_sizes(self._sizes)
        return [
            part.view(gradient.shape) if gradient.numbers else None
            for part, gradient in zip(parts, self._gradients, strict=True)
        ]

    def _bytes(self, threads: int, tokens: int) -> int:
        """Of scratch that a call needs."""
        found = self._room.get((threads, tokens))
        if found is None:
            library = amx_library()
            assert library is not None
            found = self._room[threads, tokens] = library.projection_bytes(self._by_reference, threads, tokens)
        return found


def _rows(W: Tensor) -> Tensor:
    """W with rows that have no gaps."""
    if W.stride(1) == 1:
        return W
    settle()
    return W.contiguous()


def compiled_takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the compiled code is there, and takes x (rows, ...) and the others: bf16 without gaps, rows enough."""
    return (
        amx_library() is not None
        and len(x) >= FEWEST_ROWS
        and is_bf16_rows(x)
        and x.is_contiguous()
        and all(other is None or (other.dtype == x.dtype and other.is_contiguous()) for other in others)
    )


def _gate(gating: Gating | None, way: int) -> tuple[int, int, int]:
    """The address beside, the way, and the activation's number."""
    return (0, 0, 0) if gating is None else (gating.beside.data_ptr(), way, ACTIVATIONS.index(gating.activation))
