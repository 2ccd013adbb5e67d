"""Number formats by their definition alone, in simulation: weight (O, I) -> what it would read back as.

    block of S weights in row-major order, absmax = max|w|:   back = absmax * nearest(level, w / absmax)

Written apart from the product's formats, so that the two can be compared; the product has none of these.

    e2m1   2 bits of exponent, 1 of mantissa (OCP MX): 0, .5, 1, 1.5, 2, 3, 4, 6, over 6, and their negatives
    e3m0   3 bits of exponent, none of mantissa: 0 and the powers of two from 1/64 to 1, and their negatives
    int4   k / 7 for k = -7 .. 7, symmetric; which table "Int4" means in QLoRA's Table 2 is not stated
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64
BITS = 4 + 32 / BLOCK
"""A weight, with one float32 scale a block."""


def _signed(magnitudes: list[float]) -> tuple[float, ...]:
    largest = max(magnitudes)
    return tuple(sorted({sign * value / largest for value in magnitudes for sign in (-1, 1)}))


LEVELS: dict[str, tuple[float, ...]] = {
    "e2m1": _signed([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
    "e3m0": _signed([0.0, *(2.0**-k for k in range(7))]),
    "int4-symmetric": _signed([float(k) for k in range(8)]),
}


def simulate(name: str, weight: Tensor, block: int = BLOCK) -> Tensor:
    """`weight` (O, I), whose size `block` divides, in the levels of format `name`, float32."""
    levels = torch.tensor(LEVELS[name])
    blocks = weight.float().reshape(-1, block)  # (N, S)
    absmax = blocks.abs().amax(-1, keepdim=True)
    unit = blocks / absmax.clamp(min=1e-38)
    codes = torch.bucketize(unit, (levels[:-1] + levels[1:]) / 2)
    return (levels[codes] * absmax).reshape(weight.shape)


SIMULATED: dict[str, Callable[[Tensor], Tensor]] = {
    name: (lambda weight, name=name: simulate(name, weight)) for name in LEVELS
}
