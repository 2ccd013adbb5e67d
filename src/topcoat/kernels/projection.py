"""Linears that read the same input, as one product: y = x Wᵀ + b + h Bᵀ with h = x Aᵀ, and its backward by hand.

q, k and v (or gate and up) are stacked: W (O1 + O2 + ..., I) is one matrix, the adapters' A (R1 + R2 + ..., I) are one
matrix, and B is block-diagonal with each adapter's scale folded in, so x is read twice instead of twice a linear. With
g = dL/dy:

    u = g B;   dB = gᵀ h (its diagonal blocks);   dA = uᵀ x;   dx = g W + u A

h (R numbers a token) is kept from the forward, so the backward never repeats x Aᵀ. With dropout each adapter sees its
own x * mask / (1 - p); the masks are drawn from a seed and drawn again in the backward instead of being kept.

LoRA: Hu et al. 2021, arXiv:2106.09685; the order of products follows from T >> R (arXiv:2312.03415).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from topcoat.kernels.arena import Arena
from topcoat.kernels.native.calls import settle
from topcoat.kernels.product import Gating, outer_sum, product
from topcoat.kernels.projection_native import NativeProjection, compiled_takes


class Weight(Protocol):
    """A frozen matrix (O, I) in any storage."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def lend(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        """The matrix dense in `dtype`, to be read inside the `with` only."""
        ...


@dataclass(frozen=True)
class LowRank:
    """One adapter of the stack: rows `first` to `first + O` of the output get scale * B A x.

    With a `group` S above 1, A reads the means of S neighbours of x: A (R, I / S).
    """

    lora_A: Tensor  # (R, I / S)
    lora_B: Tensor  # (O, R)
    scale: float
    first: int
    dropout: float = 0.0
    group: int = 1
    factors: Callable[[], tuple[Tensor, Tensor]] | None = None
    """Gives A and B anew for each forward where they are functions of what trains; gradients flow on through them."""

    @property
    def trains(self) -> tuple[bool, bool]:
        """Whether A does, and B."""
        return self.lora_A.requires_grad, self.lora_B.requires_grad

    def wide_A(self) -> Tensor:
        """A (R, I) on x itself."""
        return self.lora_A if self.group == 1 else self.lora_A.repeat_interleave(self.group, dim=1) / self.group

    def narrow(self, grad: Tensor) -> Tensor:
        """The gradient of `wide_A`, (R, I) -> that of A."""
        return grad if self.group == 1 else grad.unflatten(1, (-1, self.group)).mean(-1)


class Projection:
    """The stacked linears with their adapters. `refresh` before a forward; then forward and backward in any order.

    In bf16 on AMX tiles each is one call of compiled code (projection_native.py) where adapters are on, no dropout
    drops and there are rows enough; everywhere else the lines below.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, adapters: Sequence[LowRank] = ()) -> None:
        self.weight = weight
        self.bias = bias  # (O,)
        self.adapters = tuple(adapters)
        self.out_features, self.in_features = weight.shape
        self.rank = sum(a.lora_A.shape[0] for a in self.adapters)
        self._A: Tensor | None = None
        self._B: Tensor | None = None
        self._native: NativeProjection | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """lora_A and lora_B of every adapter, in the order in which `backward` answers."""
        return [p for a in self.adapters for p in (a.lora_A, a.lora_B)]

    def derive(self) -> None:
        """Take A and B of this forward where they are functions of what trains. Comes before `refresh`."""
        self.adapters = tuple(a if a.factors is None else _derived(a, *a.factors()) for a in self.adapters)

    @torch.no_grad()
    def refresh(self, dtype: torch.dtype, device: torch.device) -> None:
        """Copy the float32 masters into the stacked A (R, I) and B (O, R) that the products read, the scales in B."""
        if not self.adapters:
            return
        if self._A is None or self._A.dtype != dtype or self._A.device != device or self._A.is_inference():
            with torch.inference_mode(False):
                self._A = torch.empty(self.rank, self.in_features, dtype=dtype, device=device)
                self._B = torch.zeros(self.out_features, self.rank, dtype=dtype, device=device)
            self._native = None
        A, B = self._stacked()
        trains = tuple(adapter.trains for adapter in self.adapters)
        if self._native is None or self._native.trains != trains:
            self._native = NativeProjection(A, B, self.adapters) if NativeProjection.takes(A, self.adapters) else None
        if self._native is not None:
            self._native.fill(self.adapters)
            return
        for adapter, ranks, rows in self._places():
            A[ranks].copy_(adapter.wide_A())
            B[rows, ranks] = adapter.lora_B.to(dtype) * adapter.scale

    def forward(
        self,
        x: Tensor,
        out: Tensor,
        h: Tensor | None,
        *,
        adapted: bool,
        have_h: bool,
        seed: int | None,
        add: Tensor | None = None,
        gating: Gating | None = None,
    ) -> Tensor:
        """x (T, I) -> out (T, O), `add` (T, O) added, then `gating`.

        Fills h (T, R), or reads it where `have_h` says that an earlier forward filled it.
        """
        if not self.adapters or not adapted:
            h = None
        else:
            assert h is not None
        if add is None:
            add = self.bias
        elif self.bias is not None:
            settle()
            add = add + self.bias
        if h is not None and self._native is not None and not self._drops(seed) and compiled_takes(x, out, h, add):
            with self.weight.lend(x.dtype) as W:
                self._native.forward(x, W, out, h, add, gating, known=have_h)
            return out
        settle()
        low_rank = None
        if h is not None:
            A, B = self._stacked()
            if not have_h:
                self._inner(x, A, h, seed)
            low_rank = h, B
        with self.weight.lend(x.dtype) as W:
            return product(x, W, out, low_rank, add, gating, transposed=True)

    def backward(
        self,
        g: Tensor,
        dx: Tensor | None,
        x: Tensor,
        h: Tensor | None,
        arena: Arena,
        seed: int | None,
        gating: Gating | None = None,
    ) -> list[Tensor | None]:
        """g (T, O), x (T, I) and h (T, R) -> gradients of `parameters`, None for those that are frozen.

        Fills dx (T, I) if anybody asks for it, then does the `gating`, which may be what makes x: x may be dx.
        """
        u = arena.take("u", (len(g), self.rank), g.dtype) if self.rank else None
        if u is None:
            self._input_grad(g, dx, None, seed, gating)
            return []
        assert h is not None
        if self._native is not None and not self._drops(seed) and compiled_takes(g, x, h, dx):
            with nullcontext() if dx is None else self.weight.lend(g.dtype) as W:
                return self._in_order(self._native.backward(g, W, dx, u, x, h, gating))
        settle()
        self._input_grad(g, dx, u, seed, gating)
        return self._weight_grads(g, u, x, h, seed)

    def _input_grad(
        self, g: Tensor, dx: Tensor | None, u: Tensor | None, seed: int | None, gating: Gating | None
    ) -> None:
        """Fills u (T, R) and dx (T, I)."""
        if u is not None:
            A, B = self._stacked()
            torch.mm(g, B, out=u)
        if dx is None:
            return
        drops = self._drops(seed)
        with self.weight.lend(g.dtype) as W:
            if u is None or drops:
                product(g, W, dx, gating=None if drops else gating)
            else:
                product(g, W, dx, (u, A), gating=gating)
        if u is not None and drops:
            self._outer(u, A, dx, seed)
        if drops and gating is not None:
            gating.apply(dx)

    def _weight_grads(self, g: Tensor, u: Tensor, x: Tensor, h: Tensor, seed: int | None) -> list[Tensor | None]:
        """Gradients of `parameters` from g (T, O), u (T, R), x (T, I) and h (T, R)."""
        # one product for the whole stack where all of it trains; this way round the wide side is contiguous
        dA = None
        if not self._drops(seed) and all(a.lora_A.requires_grad for a in self.adapters):
            dA = outer_sum(u, x)  # (R, I)
        dB = outer_sum(h, g) if all(a.lora_B.requires_grad for a in self.adapters) else None  # (R, O)
        grads: list[Tensor | None] = []
        for at, (adapter, ranks, rows) in enumerate(self._places()):
            own_A = own_B = None
            if adapter.lora_A.requires_grad:
                own_A = dA[ranks] if dA is not None else u[:, ranks].T @ _dropped(x, adapter.dropout, seed, at)
                own_A = adapter.narrow(own_A).to(adapter.lora_A.dtype)
            if adapter.lora_B.requires_grad:
                own_B = dB[ranks, rows] if dB is not None else h[:, ranks].T @ g[:, rows]
                own_B = own_B.T.to(adapter.lora_B.dtype).mul_(adapter.scale)
            grads += [own_A, own_B]
        return grads

    def _inner(self, x: Tensor, A: Tensor, h: Tensor, seed: int | None) -> None:
        """h = x Aᵀ, each adapter with its own dropped x."""
        if not self._drops(seed):
            torch.mm(x, A.T, out=h)
            return
        for at, (adapter, ranks, _) in enumerate(self._places()):
            h[:, ranks] = _dropped(x, adapter.dropout, seed, at) @ A[ranks].T

    def _outer(self, u: Tensor, A: Tensor, out: Tensor, seed: int | None) -> None:
        """out += u A, through each adapter's own mask."""
        for at, (adapter, ranks, _) in enumerate(self._places()):
            out += _dropped(u[:, ranks] @ A[ranks], adapter.dropout, seed, at)

    def _in_order(self, found: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients of every wide A and then of every B -> those of `parameters`."""
        count = len(self.adapters)
        if any(adapter.group != 1 for adapter in self.adapters):
            settle()
        wide_A = zip(self.adapters, found[:count], strict=True)
        dA = [None if grad is None else adapter.narrow(grad) for adapter, grad in wide_A]
        return [grad for pair in zip(dA, found[count:], strict=True) for grad in pair]

    def _drops(self, seed: int | None) -> bool:
        return seed is not None and any(adapter.dropout for adapter in self.adapters)

    def _stacked(self) -> tuple[Tensor, Tensor]:
        assert self._A is not None, "refresh() comes first"
        assert self._B is not None
        return self._A, self._B

    def _places(self) -> list[tuple[LowRank, slice, slice]]:
        """Each adapter with its ranks in the stack and its rows of the output."""
        places, rank = [], 0
        for adapter in self.adapters:
            r, rows = adapter.lora_A.shape[0], adapter.lora_B.shape[0]
            places.append((adapter, slice(rank, rank + r), slice(adapter.first, adapter.first + rows)))
            rank += r
        return places


def _derived(adapter: LowRank, A: Tensor, B: Tensor) -> LowRank:
    return replace(adapter, lora_A=A, lora_B=B)


def _dropped(x: Tensor, p: float, seed: int | None, adapter: int) -> Tensor:
    """x * mask / (1 - p); the mask is a function of the seed and the adapter's place, so it can be drawn again."""
    if not p or seed is None:
        return x
    generator = torch.Generator(device=x.device).manual_seed(seed + adapter)
    keep = torch.empty(x.shape, dtype=torch.float32, device=x.device).uniform_(generator=generator) >= p
    return x * keep / (1 - p)
