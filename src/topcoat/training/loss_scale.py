"""Dynamic loss scaling for fp16 compute: gradients are taken of scale * loss, so that small ones do not underflow.

The scale halves when a gradient overflows (that step is skipped) and doubles after `GROWTH` good steps in a row.
Micikevicius et al. 2017, arXiv:1710.03740. In bf16 and fp32 the scale is 1 and nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GROWTH = 2000


@dataclass
class LossScale:
    """The current scale and how long it has held; both belong to a checkpoint."""

    value: float = 1.0
    good_steps: int = 0

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> LossScale:
        """2^16 for fp16, 1 for every other dtype."""
        return cls(65536.0 if dtype == torch.float16 else 1.0)

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if self.value != 1.0 and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def overflowed(self) -> bool:
        """Halve the scale after a gradient that was not finite; False when there is nothing left to halve."""
        if self.value <= 1.0:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def succeeded(self) -> None:
        """Count a good step; every `GROWTH` of them double the scale."""
        if self.value == 1.0:
            return
        self.good_steps += 1
        if self.good_steps == GROWTH:
            self.value, self.good_steps = self.value * 2, 0
