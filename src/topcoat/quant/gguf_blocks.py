"""gguf: the blocks of a GGUF file, trained as they lie: what llama.cpp serves is what the adapter was trained on.

A model loaded from a GGUF keeps the block type of every tensor (files mix them), byte for byte; only whole rows stand
in another order where GGUF permutes them (gguf_names.py). kernels/gguf_dequant.py has the layouts. A type can also be
named: then weights of any checkpoint are quantized the way llama.cpp does.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.kernels.gguf_dequant import BLOCK_TYPES, BlockType, blocks_are_finite, dequantize_blocks
from topcoat.quant.base import QuantFormat, QuantizedWeight, check_weight, require_finite, target
from topcoat.quant.rows import require_row, row_problem
from topcoat.quant.settings import GgufConfig
from topcoat.quant.sizes import weight_bytes

_BY_ID = {kind.id: kind for kind in BLOCK_TYPES.values()}
PIECE = 1 << 20  # weights quantized at a time


class GgufBlocks(QuantFormat):
    """One tensor, `blocks` (O, bytes of a row) uint8; or `weight` (O, I) where the file has plain floats."""

    Config = GgufConfig
    config: GgufConfig

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Raises TopcoatError if rows are not whole blocks."""
        require_row(row_problem(self.config, in_features))

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight (O, I) of any float dtype -> the blocks that llama.cpp would write."""
        values = check_weight(weight)
        if self.config.type == "stored":
            raise TopcoatError(
                "format gguf keeps the blocks of a GGUF file, and these weights come from no such file",
                where="model.quantization",
                fix="load a .gguf file, or name a block type: quantization: {format: gguf, type: Q4_0}",
            )
        self.check_shape(values.shape[0], values.shape[1])
        kind = BLOCK_TYPES[self.config.type]
        width = values.shape[1] // kind.weights * kind.bytes
        blocks = torch.empty(len(values), width, dtype=torch.uint8, device=values.device)
        step = max(1, PIECE // values.shape[1])
        for start in range(0, len(values), step):
            rows = values[start : start + step].float()
            require_finite(rows.abs().amax(1), weight)
            blocks[start : start + step] = _encode(rows.cpu().numpy(), self.config.type).to(values.device)
        if not blocks_are_finite(blocks, kind):
            raise TopcoatError(
                f"weights up to {float(values.abs().max()):.3g} are too large for {self.config.type}, whose scales are "
                "fp16",
                where="model.quantization.type",
                fix="use nf4 or int8, or check the checkpoint: such weights are seldom meant",
            )
        return stored_blocks(blocks, kind, (weight.shape[0], weight.shape[1]))

    def dequantize(self, q: QuantizedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The values llama.cpp computes with, in float32, rounded once to `dtype`."""
        out = target(q, dtype, out)
        plain = q.tensors.get("weight")
        if plain is not None:
            return out.copy_(plain)
        return dequantize_blocks(q.tensors["blocks"], _BY_ID[int(q.scalars["type"])], out)

    def nbytes(self, out_features: int, in_features: int) -> int:
        """4.5 to 8.5 bits a weight. Raises TopcoatError where only the file knows."""
        self.check_shape(out_features, in_features)
        return sum(weight_bytes(self.config, out_features, in_features))


def stored_blocks(blocks: Tensor, kind: BlockType, shape: tuple[int, int]) -> QuantizedWeight:
    """`blocks` (O, bytes of a row) of type `kind` as the weight of that `shape`."""
    return QuantizedWeight("gguf", shape, {"blocks": blocks}, {"type": float(kind.id)})


def _encode(rows: np.ndarray, type: str) -> Tensor:
    """rows (n, I) float32 -> (n, bytes of a row) uint8, by the gguf library, bit for bit ggml's own quantizer."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # looked at in the blocks
        return torch.from_numpy(gguf.quants.quantize(rows, gguf.GGMLQuantizationType[type]))
