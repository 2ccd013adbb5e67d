"""Adapter, the contract of every method: a frozen linear with something small and trainable around it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from topcoat.adapters.settings import AdapterConfig
from topcoat.quant.linear import FrozenLinear


class Adapter(nn.Module, ABC):
    """One adapted linear: x (..., I) -> (..., O). Its own parameters train in float32; `base` never does."""

    Config: type[AdapterConfig]

    def __init__(self, base: FrozenLinear) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        """False computes the base alone, bit for bit."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """What the adapter adds to the base's weight: (O, I), float32."""

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one dense weight (O, I), float32, that computes what forward computes."""
        return self.base.dense_weight(torch.float32) + self.delta_weight()

    @abstractmethod
    def reset(self, generator: torch.Generator) -> None:
        """Starting values; a fresh adapter changes nothing."""
