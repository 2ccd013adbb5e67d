"""IEC, the adapter of IR-QLoRA: LoRA with a short path around each of its two products.

    h = A x + b1 pool(x),   y = W x + s (B h + b2 spread(h))

pool(x) (R,) are the means of x over R equal groups of neighbours, spread(h) (O,) repeats each entry of h O / R times in
a row; b1 and b2 are one trained number each and start at zero. Where R does not divide I (or O), the groups are as many
as the greatest common divisor says: means over those groups, repeated. Both paths are linear, so with M (R, I) and
N (O, R) for pool and spread it is exactly the LoRA

    A' = A + b1 M,   B' = B + b2 N

and is computed, merged and saved as that. While dropout drops, pool reads x as it is.

The paper's equations 13 and 14 can be read as tiling the entries; its equation 16 and its code repeat each in a row, as
here. The other half of IR-QLoRA is a number format: `nf4-icq`, or its kin of fewer bits.

Paper: Qin et al. 2024, arXiv:2402.05445, section 3.3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import IecConfig, LoraConfig
from topcoat.kernels.projection import LowRank
from topcoat.quant.linear import FrozenLinear


class Iec(Lora):
    """LoRA with iec_pool (1,), the paper's beta 1, and iec_spread (1,), its beta 2."""

    Config = IecConfig

    def __init__(self, base: FrozenLinear, config: LoraConfig) -> None:
        super().__init__(base, config)
        self.iec_pool = nn.Parameter(torch.zeros(1, device=base.device))
        self.iec_spread = nn.Parameter(torch.zeros(1, device=base.device))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """LoRA's start, and no short path."""
        super().reset(generator)
        self.iec_pool.zero_()
        self.iec_spread.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or not (self.dropout and self.training):
            return super().forward(x)
        x = x.to(self.base.compute_dtype)
        _, B = self._both()
        pooled = (self.iec_pool * self._pool()).to(x.dtype)
        h = F.dropout(x, self.dropout) @ self.lora_A.to(x.dtype).T + x @ pooled.T  # (..., R)
        return self.base(x) + self.scale * (h @ B.to(x.dtype).T)

    def _both(self) -> tuple[Tensor, Tensor]:
        """A' (R, I) and B' (O, R): differentiable functions of what trains."""
        return self.lora_A + self.iec_pool * self._pool(), self.lora_B + self.iec_spread * self._spread()

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor] | None:
        """A' (R, I) and s B' (O, R)."""
        A, B = self._both()
        return A, self.scale * B

    def _pool(self) -> Tensor:
        """M (R, I)."""
        return averages(self.config.r, self.base.in_features, self.lora_A)

    def _spread(self) -> Tensor:
        """N (O, R)."""
        return averages(self.base.out_features, self.config.r, self.lora_B)

    def low_rank(self) -> list[LowRank] | str:
        if self.dropout:
            return "IEC with dropout reads its input both dropped and as it is"
        A, B = self._both()
        return [LowRank(A.detach(), B.detach(), self.scale, 0, factors=self._both)]


def averages(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns) that takes means over gcd(rows, columns) groups of neighbours and repeats each in a row.

    On the device and in the dtype of `like`.
    """
    groups = math.gcd(rows, columns)
    each = torch.eye(groups, device=like.device, dtype=like.dtype) * (groups / columns)
    return each.repeat_interleave(rows // groups, 0).repeat_interleave(columns // groups, 1)
