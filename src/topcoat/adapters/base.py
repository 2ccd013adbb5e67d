"""Adapter, the contract of every method: a frozen linear with something small and trainable around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topcoat.adapters.settings import TargetedConfig
from topcoat.adapters.start import Start
from topcoat.kernels.projection import LowRank
from topcoat.quant.linear import FrozenLinear


class Adapter(nn.Module, ABC):
    """One adapted linear: x (..., I) -> (..., O). Its own parameters train in float32; `base` never does."""

    Config: type[TargetedConfig]

    def __init__(self, base: FrozenLinear) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        """False computes the base alone, bit for bit."""

    @classmethod
    @abstractmethod
    def build(
        cls, linears: Mapping[str, FrozenLinear], config: TargetedConfig, start: Start | None
    ) -> dict[str, Adapter]:
        """One layer for each of `linears`, at its first values; without a `start`, at none in particular.

        Raises TopcoatError for settings that do not fit these linears.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """The one dense weight (O, I), float32, that computes what forward computes.

        From the base's own weight, or from `weight` (O, I), the same one as it was before it was stored.
        """

    def merged_bias(self) -> Tensor | None:
        """The bias (O,) that goes with `merged_weight`; None where the base has none."""
        return self.base.bias

    @abstractmethod
    def reset(self, generator: torch.Generator) -> None:
        """Starting values."""

    def drawn(self) -> dict[str, Tensor]:
        """Tensors that were drawn at the start and do not train, by name; a checkpoint holds them."""
        return {name: p for name, p in self.named_parameters(recurse=False) if not p.requires_grad}

    def rate_factor(self, name: str) -> float:
        """The learning rate of parameter `name` as a multiple of the run's."""
        return 1.0

    def slots(self) -> dict[str, Tensor]:
        """What a file's tensors are read into, by PEFT's name behind the path."""
        return dict(self.named_parameters(recurse=False))

    def stored(self) -> dict[str, Tensor]:
        """What a file holds of this layer, by PEFT's name behind the path."""
        return self.slots()

    def shared(self) -> dict[str, Tensor]:
        """Tensors that all layers have in common and that the file holds once, by PEFT's name."""
        return {}

    def as_lora(self) -> tuple[Tensor, Tensor] | None:
        """A (R, I) and B (O, R) of the LoRA with scale 1 that computes the same; None where there is none."""
        return None

    def low_rank(self) -> list[LowRank] | str:
        """This layer as terms scale * B A x beside its base, for the hand-written blocks; or why it is none."""
        return f"{type(self).__name__} is no sum of low-rank terms"

    @torch.no_grad()
    def _dense(self, weight: Tensor | None) -> Tensor:
        """(O, I) in float32: the base's weight, or `weight`."""
        return self.base.dense_weight(torch.float32) if weight is None else weight.to(self.base.device, torch.float32)

    def changes(self) -> bool:
        """False for a layer that computes exactly what its base computes."""
        return not torch.equal(self.merged_weight(), self.base.dense_weight(torch.float32))
