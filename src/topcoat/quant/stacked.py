"""Frozen linears that read the same input, as one weight: q, k and v, or gate and up.

Dense weights are laid one under the other once, and each linear's own weight becomes its rows of that: no copy is kept,
and the linears go on computing by themselves. Quantized weights stay as they are stored and are rebuilt side by side in
the scratch buffer for the length of one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from topcoat.kernels.huge_pages import Slabs
from topcoat.kernels.native.calls import at_once
from topcoat.kernels.scratch import scratch
from topcoat.quant.linear import FrozenLinear, rebuilt


class StackedWeight:
    """`linears` (O1, I), (O2, I), ... as one matrix (O1 + O2 + ..., I)."""

    def __init__(self, linears: Sequence[FrozenLinear], slabs: Slabs) -> None:
        """Dense weights are laid into `slabs`, which all stacks of a model share."""
        self.linears = tuple(linears)
        self.shape = (sum(linear.out_features for linear in linears), linears[0].in_features)
        self._dense = self._laid_together(slabs)

    @contextmanager
    def lend(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The matrix (O, I) in `dtype`, to be read inside the `with` only."""
        if self._dense is not None and self._dense.dtype == dtype:
            yield self._dense
            return
        # what is written at once may be what a product that waits has yet to read
        with nullcontext() if all(linear.format.can_wait for linear in self.linears) else at_once():
            if len(self.linears) == 1:
                with rebuilt(self.linears[0].weight_state, self.linears[0].format, dtype) as dense:
                    yield dense
                return
            with scratch(self.shape, dtype, self.linears[0].device) as dense:
                first = 0
                for linear in self.linears:
                    rows = dense[first : first + linear.out_features]
                    linear.format.dequantize(linear.weight_state, dtype, out=rows)
                    first += linear.out_features
                yield dense

    def bias(self) -> Tensor | None:
        """The biases (O,) one after the other, zeros where a linear has none; None where none has."""
        if all(linear.bias is None for linear in self.linears):
            return None
        parts = [
            torch.zeros(linear.out_features, dtype=linear.compute_dtype, device=linear.device)
            if linear.bias is None
            else linear.bias
            for linear in self.linears
        ]
        return torch.cat(parts)

    def _laid_together(self, slabs: Slabs) -> Tensor | None:
        """The dense weights as one tensor, if all are dense in one dtype; the linears then read their rows of it."""
        weights = [linear.weight_state.tensors.get("weight") for linear in self.linears]
        dense = [weight for weight in weights if weight is not None]
        if len(dense) < len(weights) or len({weight.dtype for weight in dense}) > 1:
            return None
        if any(linear.format.quantized for linear in self.linears):
            return None
        if len(dense) == 1:
            return dense[0]
        room = slabs.empty(self.shape[0] * self.shape[1], dense[0].dtype)
        stacked = torch.cat(dense, out=room.view(self.shape))
        for linear, rows in zip(self.linears, stacked.split([len(weight) for weight in dense]), strict=True):
            linear.weight = rows
        return stacked
