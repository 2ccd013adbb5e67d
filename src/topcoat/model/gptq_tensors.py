"""Linears of a GPTQ checkpoint, as single tensors: W[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), g = g_idx[i].

A linear X of shape (O, I), `b` bits and L groups is four tensors of the file:

    X.qweight  int32 (I b / 32, O)   codes of one output down a column, low bits first: 2, 3, 4 or 8 bits, 3 of them
                                     running across the borders of words
    X.qzeros   int32 (L, O b / 32)   zero points along the outputs, packed the same way
    X.scales   float16 (L, O)
    X.g_idx    int32 (I,)            the group of each input; i // group_size unless made with activation order

`checkpoint_format` gptq (v1) stores zero - 1, so that a zero of 0 stands as 2**b - 1; gptq_v2 stores zero. The bytes of
qweight, transposed, are the codes of this format's own layout (quant/bits.py).

Source: AutoGPTQ's and GPTQModel's QuantLinear.pack; Frantar et al. 2022, arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from topcoat.kernels.packed_codes import unpack_bits
from topcoat.model.joined import JoinedTensor, broken, check_groups, join, take_parts, total_bytes
from topcoat.model.source import StoredTensor
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.gptq_integers import GptqIntegers
from topcoat.quant.grouped import Grouped
from topcoat.quant.settings import GptqConfig, IntConfig, QuantConfig

BITS = (2, 3, 4, 8)
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class IntegerTensor(JoinedTensor):
    """One linear of integers with whole zero points, as GPTQ and AWQ hold them."""

    config: GptqConfig

    def packed(self, raw: Tensor, wanted: QuantConfig) -> QuantizedWeight | None:
        """The codes as they lie, for the file's format, and for int2, int3 or int4 whose fp32 constants hold the same.

        low = -zero * scale has 19 bits at most, so float32 loses nothing; what float16 would lose is requantized.
        """
        if isinstance(wanted, GptqConfig) and wanted.group_size == self.shape[1]:
            wanted = wanted.model_copy(update={"group_size": -1})  # the same, as this file's config says it
        if not isinstance(wanted, IntConfig):
            return super().packed(raw, wanted)
        same = (wanted.bits, wanted.group_size) == (self.config.bits, self.config.group_size)
        if not same or wanted.scale_dtype != "fp32":
            return None
        own = self.weight(raw)
        if "group" in own.tensors:  # activation order: its groups are no runs
            return None
        scale, low = GptqIntegers(self.config).levels(own.tensors["scale"], own.tensors["zero"])
        return Grouped(wanted).state(own.tensors["codes"], scale, low, own.shape)


@dataclass(frozen=True)
class GptqTensor(IntegerTensor):
    """One linear of a GPTQ checkpoint."""

    stored_zero_offset: int
    """What is added to a zero point as it stands: 1 in v1, 0 in v2."""

    def weight(self, raw: Tensor) -> QuantizedWeight:
        parts, bits = self.pieces(raw), self.config.bits
        rows, columns = self.shape
        codes = parts["qweight"].T.contiguous().view(torch.uint8)  # (O, I b / 8)
        zeros = unpack_bits(parts["qzeros"].view(torch.uint8), bits)  # (L, O)
        zeros = (zeros.int() + self.stored_zero_offset) & (2**bits - 1)
        group = self._groups(parts.get("g_idx"), len(zeros))
        zero = zeros.to(torch.uint8).T.contiguous()
        return GptqIntegers(self.config).state(codes, parts["scales"].T.contiguous(), zero, (rows, columns), group)

    def _groups(self, g_idx: Tensor | None, count: int) -> Tensor | None:
        """The group of each input (I,) int32, or None where they are `count` equal runs: the last may be shorter."""
        columns = self.shape[1]
        size = columns if self.config.group_size == -1 else self.config.group_size
        counted = torch.arange(columns, dtype=torch.int32) // size
        if g_idx is None:
            g_idx = counted
        else:
            check_groups(self, "GPTQ", g_idx, count)
        return None if columns % size == 0 and torch.equal(g_idx, counted) else g_idx


def join_gptq(tensors: Sequence[StoredTensor], facts: Mapping[str, Any]) -> list[StoredTensor]:
    """The tensors of a checkpoint with every linear that GPTQ quantized as one; `facts` is its quantization_config.

    Raises:
        TopcoatError: parts of a linear are missing or of another form.
    """
    return join(
        tensors,
        ("qweight", "qzeros", "scales", "g_idx"),
        lambda path, weight, by_name: _linear(path, weight, by_name, facts),
    )


def _linear(
    path: str, qweight: StoredTensor, by_name: Mapping[str, StoredTensor], facts: Mapping[str, Any]
) -> GptqTensor:
    name, file = f"{path}.weight", qweight.file
    zeros = by_name.get(f"{path}.qzeros")
    if zeros is None or len(zeros.shape) != 2 or len(qweight.shape) != 2 or 0 in (*zeros.shape, *qweight.shape):
        raise broken(name, file, "GPTQ", "qweight and qzeros are not two matrices")
    (words, rows), (groups, packed) = qweight.shape, zeros.shape
    bits = 32 * packed // rows
    own = facts.get("bits")
    if bits not in BITS or packed * 32 != rows * bits or words * 32 % bits or not (facts.get("dynamic") or bits == own):
        raise broken(name, file, "GPTQ", f"its shapes mean {32 * packed / rows:g} bits, and config.json {own}")
    columns = words * 32 // bits
    try:
        size = int(facts.get("group_size", -1))
        config = GptqConfig(bits=bits, group_size=-1 if size >= columns else size, sym=bool(facts.get("sym", False)))
    except (ValidationError, TypeError, ValueError) as error:
        raise broken(name, file, "GPTQ", f"its group_size is {facts.get('group_size')!r}") from error
    size = columns if config.group_size == -1 else config.group_size
    if groups != -(-columns // size):
        raise broken(name, file, "GPTQ", f"it has {groups} groups, and rows of {columns} weights in groups of {size}")
    wanted: dict[str, tuple[str, tuple[str, ...], tuple[int, ...] | int]] = {
        "qweight": (f"{path}.qweight", ("I32",), (words, rows)),
        "qzeros": (f"{path}.qzeros", ("I32",), (groups, packed)),
        "scales": (f"{path}.scales", FLOATS, (groups, rows)),
    }
    if f"{path}.g_idx" in by_name:
        wanted["g_idx"] = (f"{path}.g_idx", ("I32",), (columns,))
    parts = take_parts(name, file, wanted, by_name, "GPTQ")
    offset = 0 if facts.get("checkpoint_format") == "gptq_v2" else 1
    return GptqTensor(name, f"GPTQ{bits}", (rows, columns), file, total_bytes(parts), parts, config, offset)
