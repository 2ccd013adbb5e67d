"""What a number format is: a frozen weight in, codes and scales out, and the weight back on demand.

A `QuantFormat` turns one weight (O, I) into a `QuantizedWeight` and back: `quantize` runs once, while the model
streams in; `dequantize` runs in every forward and every backward. The table of formats is `FORMATS` in formats.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.quant.settings import QuantConfig


@dataclass
class QuantizedWeight:
    """One frozen weight as it is stored; it knows its logical shape (O, I), whatever its tensors look like."""

    format: str
    """The format's name in FORMATS."""
    shape: tuple[int, int]
    """(out_features, in_features)."""
    tensors: dict[str, Tensor]
    """Codes, scales and what else must move with the weight: all of the state."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Settings that dequantizing needs, such as block_size; the same for every weight of one config."""

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return QuantizedWeight(self.format, self.shape, moved, dict(self.scalars))


class QuantFormat(ABC):
    """How a frozen weight is stored and read back. Subclasses add no state of their own."""

    Config: ClassVar[type[QuantConfig]]
    quantized: ClassVar[bool] = True
    """False where the weight is stored as plain numbers that a product can read as they are."""
    can_wait: ClassVar[bool] = False
    """True where all that `dequantize` does to numbers waits its turn among compiled calls (native/calls.py)."""
    found: ClassVar[Mapping[str, tuple[torch.dtype, ...]]] = {}
    """Tensors that only files of other programs bring, or in dtypes that only they have: name -> those dtypes."""

    def __init__(self, config: QuantConfig) -> None:
        self.config = config
        self.named = config
        """What a recipe or a file calls it by: its own settings, or where it is another package's, its registration."""

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Raises TopcoatError if a weight of this shape cannot be stored; asked before anything is read."""
        return None

    @abstractmethod
    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """`weight` (O, I) of any float dtype -> its stored form, on the same device.

        Raises:
            TopcoatError: the weight is not a matrix, or holds values that no format can store (NaN, infinity).
        """

    @abstractmethod
    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The weight (O, I) in `dtype`: written into `out` (that shape and dtype) where given, else a new tensor."""

    def example(self, in_features: int) -> QuantizedWeight:
        """One row (1, I) as it is stored: which tensors there are, their dtypes and widths.

        Raises TopcoatError if rows of this width cannot be stored.
        """
        self.check_shape(1, in_features)
        return self.quantize(torch.zeros(1, in_features))

    @abstractmethod
    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight of this shape takes, exactly: what the planner counts."""


def check_weight(weight: Tensor) -> Tensor:
    """`weight` (O, I), detached, if it is a float matrix; its values are not looked at.

    Raises:
        TopcoatError: not a matrix of floats; the caller adds the tensor's name in `where`.
    """
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise TopcoatError(
            f"a linear's weight must be a float matrix (out, in), and this one is {weight.dtype} {tuple(weight.shape)}",
            fix="load a checkpoint whose linears are plain float tensors",
        )
    return weight.detach()


def require_finite(largest: Tensor, weight: Tensor) -> None:
    """Raises TopcoatError if `largest`, the magnitudes of `weight`'s blocks, shows that some value is not finite.

    NaN and infinity survive a maximum, so looking at the scales is enough, and takes no memory.
    """
    if bool(torch.isfinite(largest).all()):
        return
    nans = infinite = 0
    for part in weight.flatten().split(1 << 22):
        nans += int(torch.isnan(part).sum())
        infinite += int(torch.isinf(part).sum())
    raise TopcoatError(
        f"{nans + infinite} of {weight.numel()} weights are not finite: {nans} NaN, {infinite} infinite",
        fix="the checkpoint is damaged or was saved after its training diverged; fetch it again or take another",
    )


def target(q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """`out`, checked, or a new uninitialised tensor (O, I)."""
    if out is None:
        return torch.empty(q.shape, dtype=dtype, device=q.device)
    if tuple(out.shape) != q.shape or out.dtype != dtype:
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}, the weight is {q.shape} {dtype}")
    return out
