"""FrozenEmbedding: rows of a table in any number format, looked up and never trained.

Formats with codes in rows rebuild only the rows asked for; others rebuild the table for the length of the look-up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.frozen import Frozen
from topcoat.quant.linear import rebuilt

BY_ROW = ("int2", "int3", "int4", "int8", "gptq", "gguf", "bf16", "fp16", "fp32")
"""Formats whose tensors have one row for each row of the weight."""
BY_COLUMN = ("group",)
"""All but these, which are the same for every row."""


class FrozenEmbedding(Frozen):
    """ids (...) -> rows (..., D) of a table (V, D), in `compute_dtype`. Its tensors are buffers, as FrozenLinear's."""

    def __init__(self, weight: QuantizedWeight, format: QuantFormat, compute_dtype: torch.dtype) -> None:
        super().__init__(weight, format, compute_dtype)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 -> (..., D)."""
        state, flat = self.weight_state, ids.reshape(-1)
        if self._format_name in BY_ROW:
            some = {name: tensor if name in BY_COLUMN else tensor[flat] for name, tensor in state.tensors.items()}
            chosen = QuantizedWeight(state.format, (len(flat), self.embedding_dim), some, self._scalars)
            rows = self.format.dequantize(chosen, self.compute_dtype)
        else:
            with rebuilt(state, self.format, self.compute_dtype) as table:
                rows = table[flat]
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """Sizes and format, for printing the model."""
        return f"{self.num_embeddings}, {self.embedding_dim}, format={self._format_name}"
