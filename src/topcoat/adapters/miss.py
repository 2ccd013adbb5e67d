"""MiSS: y = W x + D' sum_j x_j, one matrix D (R, O) shared by all pieces x_j of length R that the input is cut into.

The last piece is filled up with zeros where R does not divide I. It is LoRA of rank R with the fixed A[j, i] = 1 where
i mod R = j, B = D' and scale 1, without reading A at all. D starts at zero.

Paper: Kang & Yin 2024, arXiv:2409.15371 (first named Bone).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.lora import check_ranks
from topcoat.adapters.settings import MissConfig, TargetedConfig
from topcoat.adapters.start import Start
from topcoat.quant.linear import FrozenLinear


class Miss(Adapter):
    """A frozen linear (I -> O) with miss_block (R, O)."""

    Config = MissConfig

    def __init__(self, base: FrozenLinear, config: MissConfig) -> None:
        super().__init__(base)
        self.r, self.dropout = config.r, config.miss_dropout
        self.miss_block = nn.Parameter(torch.zeros(config.r, base.out_features, device=base.device))

    @classmethod
    def build(
        cls, linears: Mapping[str, FrozenLinear], config: TargetedConfig, start: Start | None
    ) -> dict[str, Adapter]:
        assert isinstance(config, MissConfig)
        if start is not None:
            check_ranks(linears, config)
        return {path: cls(linear, config) for path, linear in linears.items()}

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Zero."""
        self.miss_block.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        x = x.to(self.base.compute_dtype)
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        return self.base(x) + self.pieces(dropped) @ self.miss_block.to(x.dtype)

    def pieces(self, x: Tensor) -> Tensor:
        """x (..., I) -> the sum of its pieces (..., R)."""
        missing = -x.shape[-1] % self.r
        return F.pad(x, (0, missing)).unflatten(-1, (-1, self.r)).sum(-2)

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W with D' added to every piece of its columns."""
        copies = -(-self.base.in_features // self.r)
        return self._dense(weight) + self.miss_block.float().T.repeat(1, copies)[:, : self.base.in_features]

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor] | None:
        """A (R, I) and B (O, R) of the LoRA with scale 1 that computes the same."""
        return self.pieces(torch.eye(self.base.in_features, device=self.base.device)).T, self.miss_block.float().T
