"""FrozenLinear: y = x Wᵀ + b with W in any number format; it computes and never trains.

A quantized W is rebuilt in the compute dtype for one product and forgotten: once in the forward and once more in the
backward, where dx = dy W. What stays between the two is the stored state, which lives in the module anyway, so a frozen
layer saves nothing for its backward, not even x (no gradient of W is ever asked for).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from topcoat.kernels.scratch import scratch
from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.dense import NAMES
from topcoat.quant.formats import make_format
from topcoat.quant.frozen import Frozen
from topcoat.quant.settings import DenseConfig, QuantConfig


@contextmanager
def rebuilt(weight: QuantizedWeight, format: QuantFormat, dtype: torch.dtype) -> Iterator[Tensor]:
    """Lends the weight (O, I) in `dtype`, to be read inside the `with` only: what is stored, or the scratch buffer."""
    stored = weight.tensors.get("weight")
    if stored is not None and stored.dtype == dtype:
        yield stored
        return
    with scratch(weight.shape, dtype, weight.device) as dense:
        yield format.dequantize(weight, dtype, out=dense)


class _RebuiltLinear(torch.autograd.Function):
    """x (..., I) -> x Wᵀ + b (..., O), with W rebuilt from its state in the forward and in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: QuantizedWeight, format: QuantFormat) -> Tensor:
        ctx.weight, ctx.format = weight, format
        with rebuilt(weight, format, x.dtype) as dense:
            return F.linear(x, dense, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        with rebuilt(ctx.weight, ctx.format, grad.dtype) as dense:
            return grad @ dense, None, None, None


class FrozenLinear(Frozen):
    """One frozen linear: x (..., I) -> (..., O) in `compute_dtype`; the gradient goes to x only.

    The state's tensors are buffers (`codes`, `absmax`, ... or `weight`), so `.to(device)` moves them and `state_dict`
    holds all there is.
    """

    bias: Tensor | None

    def __init__(
        self, weight: QuantizedWeight, format: QuantFormat, bias: Tensor | None, compute_dtype: torch.dtype
    ) -> None:
        super().__init__(weight, format, compute_dtype)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().to(compute_dtype))

    @classmethod
    def from_dense(
        cls, weight: Tensor, bias: Tensor | None, config: QuantConfig, compute_dtype: torch.dtype
    ) -> FrozenLinear:
        """Quantizes `weight` (O, I) as `config` says; `bias` (O,) is kept in the compute dtype.

        Raises:
            TopcoatError: the weight holds values that cannot be stored.
        """
        format = make_format(config)
        return cls(format.quantize(weight), format, bias, compute_dtype)

    @classmethod
    def share(cls, linear: nn.Linear) -> FrozenLinear:
        """A dense FrozenLinear on the very weight of `linear`: nothing is copied, and neither trains it."""
        weight = linear.weight.detach()
        name = NAMES[weight.dtype]
        format = make_format(DenseConfig(format=name))
        state = QuantizedWeight(name, (linear.out_features, linear.in_features), {"weight": weight})
        return cls(state, format, linear.bias, weight.dtype).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) of any float dtype -> (..., O) in the compute dtype."""
        x = x.to(self.compute_dtype)
        state = self.weight_state
        dense = state.tensors.get("weight")
        if dense is not None and dense.dtype == x.dtype:
            return F.linear(x, dense, self.bias)
        return _RebuiltLinear.apply(x, self.bias, state, self.format)

    @torch.no_grad()
    def input_grad(self, grad: Tensor) -> Tensor:
        """grad (..., O) of the output -> grad of the input (..., I), for backward passes written by hand."""
        with rebuilt(self.weight_state, self.format, grad.dtype) as dense:
            return grad @ dense

    def extra_repr(self) -> str:
        """Sizes and format, for printing the model."""
        dtype = str(self.compute_dtype).removeprefix("torch.")
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={self._format_name}, compute_dtype={dtype}"
        )
