"""C = A B + E F + D in one pass over C: a frozen weight's product, its low-rank term and what is added to both.

Written as torch calls, the low-rank term reads and writes all of C again to add R products a number, and so do a
residual and a gate. In bf16 on a CPU with AMX compiled code (product_native.py) forms them in the same float32 sums,
rounds once, and gates while the numbers are at hand.

The order of products is that of LoRA's own paper: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.kernels.gated import Activation, gated, gated_backward_
from topcoat.kernels.long_product import long_product
from topcoat.kernels.native.calls import settle
from topcoat.kernels.product_native import native_outer_sum, native_product, native_takes


@dataclass(frozen=True)
class Gating:
    """What happens to the product of a gated MLP while it is at hand (gated.py).

    Forwards, `out` is (gate | up) (M, 2 F) and `beside` h (M, F) is filled. Backwards the product is dh, `beside` is
    (gate | up) and becomes (dgate | dup), and `out` (M, F) is h.
    """

    activation: Activation
    beside: Tensor
    backward: bool = False

    def apply(self, out: Tensor) -> None:
        """The same after the product, by itself."""
        if self.backward:
            gated_backward_(out, self.beside, self.activation)
        else:
            gated(out, self.activation, out=self.beside)


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    low_rank: tuple[Tensor, Tensor] | None = None,
    add: Tensor | None = None,
    gating: Gating | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """a (M, K) @ b (K, N) + low_rank (M, R) @ (R, N) + add (M, N) or (N,) into `out` (M, N), then `gating`.

    With `transposed`, b is (N, K) and the second of `low_rank` (N, R). Nothing that autograd follows.
    """
    if native_takes(len(a), out, a, b, *(low_rank or ()), add):
        if gating is not None and _gates(gating, out, add):
            activation, beside, backward = gating.activation, gating.beside, gating.backward
            native_product(
                a, b, out, low_rank, add, transposed=transposed, activation=activation, beside=beside, backward=backward
            )
            return out
        native_product(a, b, out, low_rank, add, transposed=transposed)
    else:
        settle()
        if transposed:
            torch.mm(a, b.T, out=out)
        else:
            long_product(a, b, out=out)
        if low_rank is not None:
            out.addmm_(low_rank[0], low_rank[1].T if transposed else low_rank[1])
        if add is not None:
            out.add_(add)
    if gating is not None:
        gating.apply(out)
    return out


def _gates(gating: Gating, out: Tensor, add: Tensor | None) -> bool:
    """Whether compiled code gates as it goes: forwards 16 columns of the gate at a time, backwards nothing added."""
    fits = add is None if gating.backward else out.shape[1] % 32 == 0
    return fits and native_takes(len(out), gating.beside)


def outer_sum(u: Tensor, x: Tensor) -> Tensor:
    """u (T, R)ᵀ @ x (T, N) for a small R: (R, N), in float32 where compiled code forms it, else in x's dtype."""
    if native_takes(len(x), u, x):
        return native_outer_sum(u, x)
    settle()
    return torch.mm(u.T, x)
