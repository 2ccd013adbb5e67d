"""A module trained whole beside the adapter: a float32 copy computes, the original waits unchanged.

This is PEFT's `modules_to_save`. The copy's parameters are float32 masters, cast to the compute dtype in each forward,
so that small updates are not lost to rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class TrainedCopy(nn.Module):
    """Computes with its float32 copy while `enabled`, else with `base`."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        self.dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
        self.copy = copy.deepcopy(base).to(torch.float32).requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        cast = {name: parameter.to(self.dtypes[name]) for name, parameter in self.copy.named_parameters()}
        return functional_call(self.copy, cast, args, kwargs)

    @property
    def weight(self) -> Tensor:
        """The weight that computes now, in the base's dtype: what a head's loss multiplies with."""
        module = self.copy if self.enabled else self.base
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.to(self.dtypes["weight"])
