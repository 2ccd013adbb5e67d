"""Frozen, the part that every module with a stored weight has in common: buffers whose bytes never change.

Moving the module to another device moves its buffers; casting it (`.half()`, `.to(dtype)`) leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from topcoat.quant.base import QuantFormat, QuantizedWeight


class Frozen(nn.Module):
    """Holds one weight in any number format, its tensors as buffers, and the dtype it computes in."""

    def __init__(self, weight: QuantizedWeight, format: QuantFormat, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.format = format
        self.compute_dtype = compute_dtype
        self._shape = weight.shape
        self._scalars = dict(weight.scalars)
        self._format_name = weight.format
        self._state_names = tuple(weight.tensors)
        for name, tensor in weight.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.get_buffer(self._state_names[0]).device

    @property
    def weight_state(self) -> QuantizedWeight:
        """The stored weight, as its buffers are now."""
        tensors = {name: self.get_buffer(name) for name in self._state_names}
        return QuantizedWeight(self._format_name, self._shape, tensors, self._scalars)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight, (O, I) or (V, D), as a new tensor in `dtype`: what forward computes with, free to be written."""
        return self.format.dequantize(self.weight_state, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self
