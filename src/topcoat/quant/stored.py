"""stored: stands for the format that each tensor of the checkpoint has; model/fill.py puts that in its place."""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.settings import StoredConfig


class Stored(QuantFormat):
    """No format of its own."""

    Config = StoredConfig

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Raises TopcoatError."""
        raise _without_file()

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Raises TopcoatError."""
        raise _without_file()

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Raises TopcoatError."""
        raise _without_file()


def _without_file() -> TopcoatError:
    return TopcoatError(
        "format stored means what the checkpoint's own tensors are, and only loading it says which",
        where="model.quantization",
        fix="name the format, such as nf4",
    )
