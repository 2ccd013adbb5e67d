"""Linears of an AWQ checkpoint, as single tensors: W[o, i] = scales[i // S, o] * (code[i, o] - zero[i // S, o]).

A linear X of shape (O, I) in groups of S is three tensors of the file, in the "gemm" packing of 4 bits:

    X.qweight  int32 (I, O / 8)       eight outputs to a word
    X.qzeros   int32 (I / S, O / 8)   the same
    X.scales   float16 (I / S, O)

Nibble n of a word, counted from the lowest, holds output 8 k + ORDER[n]: what the kernel unpacks to even outputs first.

Source: AutoAWQ's WQLinear_GEMM.from_linear; Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from topcoat.model.gptq_tensors import IntegerTensor
from topcoat.model.joined import broken, join, take_parts, total_bytes
from topcoat.model.source import StoredTensor
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.bits import pack_bits
from topcoat.quant.gptq_integers import GptqIntegers
from topcoat.quant.settings import GptqConfig

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AwqTensor(IntegerTensor):
    """One linear of an AWQ checkpoint."""

    def weight(self, raw: Tensor) -> QuantizedWeight:
        parts = self.pieces(raw)
        codes = pack_bits(unpack_words(parts["qweight"]).T.contiguous(), 4)  # (O, I / 2)
        zero = unpack_words(parts["qzeros"]).T.contiguous()  # (O, L)
        scale = parts["scales"].T.contiguous()
        return GptqIntegers(self.config).state(codes, scale, zero, (self.shape[0], self.shape[1]))


def unpack_words(words: Tensor) -> Tensor:
    """(N, O / 8) int32 -> codes (N, O) uint8."""
    nibbles = torch.stack([(words >> 4 * n) & 15 for n in range(8)], dim=-1)  # (N, O / 8, 8)
    return nibbles[..., torch.tensor(ORDER).argsort()].flatten(1).to(torch.uint8)


def join_awq(tensors: Sequence[StoredTensor], facts: Mapping[str, Any]) -> list[StoredTensor]:
    """The tensors of a checkpoint with every linear that AWQ quantized as one; `facts` is its quantization_config.

    Raises:
        TopcoatError: parts of a linear are missing or of another form.
    """
    return join(
        tensors, ("qweight", "qzeros", "scales"), lambda path, weight, by_name: _linear(path, weight, by_name, facts)
    )


def _linear(
    path: str, qweight: StoredTensor, by_name: Mapping[str, StoredTensor], facts: Mapping[str, Any]
) -> AwqTensor:
    name, file = f"{path}.weight", qweight.file
    if len(qweight.shape) != 2 or 0 in qweight.shape:
        raise broken(name, file, "AWQ", "qweight is no matrix")
    columns, words = qweight.shape
    try:
        size = int(facts.get("group_size", 128))
        config = GptqConfig(bits=4, group_size=-1 if size >= columns else size)
    except (ValidationError, TypeError, ValueError) as error:
        raise broken(name, file, "AWQ", f"its group_size is {facts.get('group_size')!r}") from error
    size = columns if config.group_size == -1 else config.group_size
    if columns % size:
        raise broken(name, file, "AWQ", f"groups of {size} do not divide its rows of {columns} weights")
    wanted: dict[str, tuple[str, tuple[str, ...], tuple[int, ...] | int]] = {
        "qweight": (f"{path}.qweight", ("I32",), (columns, words)),
        "qzeros": (f"{path}.qzeros", ("I32",), (columns // size, words)),
        "scales": (f"{path}.scales", ("F16", "BF16", "F32"), (columns // size, 8 * words)),
    }
    parts = take_parts(name, file, wanted, by_name, "AWQ")
    return AwqTensor(name, "AWQ4", (8 * words, columns), file, total_bytes(parts), parts, config)
