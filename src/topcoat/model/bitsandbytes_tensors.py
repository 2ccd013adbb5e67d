"""Linears that bitsandbytes quantized, as single tensors: nf4, fp4 and int8 as transformers writes them.

A linear X is several tensors of the file (exporting/bitsandbytes.py lists them); here they are one, named X.weight,
which reads back as numbers or is handed over as it lies where the same format is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.model.joined import JoinedTensor, broken, take_parts, total_bytes
from topcoat.model.source import StoredTensor
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.settings import Fp4Config, Int8Config, Nf4Config

_STATE = ".quant_state.bitsandbytes__"
_FOUR_BIT = {"nf4": Nf4Config, "fp4": Fp4Config}
_NESTED_BLOCK = 256
_STORAGE = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
"""What 4-bit codes may lie in (bnb_4bit_quant_storage) -> bytes of a number: the bytes are the same."""
TOOL = "bitsandbytes"


@dataclass(frozen=True)
class BitsandbytesTensor(JoinedTensor):
    """One quantized linear of the file."""

    offset: float | None = None
    """The mean of the scales, with double quantization; it stands in the JSON."""

    def weight(self, raw: Tensor) -> QuantizedWeight:
        tensors = self.pieces(raw)
        if self.offset is not None:
            tensors["offset"] = torch.tensor(self.offset, dtype=torch.float32)
        rows, columns = self.shape
        if isinstance(self.config, Int8Config):
            return QuantizedWeight("int8", (rows, columns), tensors)
        tensors["codes"] = tensors["codes"].view(-1).view(torch.uint8)
        size = float(self.config.model_dump()["block_size"])
        return QuantizedWeight(self.config.format, (rows, columns), tensors, {"block_size": size})


def join_quantized(tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """The tensors of a checkpoint with every linear that bitsandbytes quantized as one.

    Raises:
        TopcoatError: parts of a linear are missing or not as bitsandbytes writes them.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    joined: list[StoredTensor] = []
    used: set[str] = set()
    for tensor in tensors:
        base, found, kind = tensor.name.partition(_STATE)
        if found:
            joined.append(_four_bit(base, kind, tensor, by_name))
            used |= {name for name in by_name if name == base or name.startswith(f"{base}.")}
        elif tensor.name.endswith(".SCB"):
            path = tensor.name.removesuffix(".SCB")
            joined.append(_int8(path, by_name))
            used |= {f"{path}.{name}" for name in ("weight", "SCB", "weight_format")}
    return [tensor for tensor in tensors if tensor.name not in used] + joined


def _four_bit(name: str, kind: str, state: StoredTensor, by_name: dict[str, StoredTensor]) -> BitsandbytesTensor:
    """The linear whose codes are at `name`, X.weight."""
    try:
        facts = json.loads(bytes(state.raw().tolist()).decode())
        nested, shape = "nested_offset" in facts, tuple(int(n) for n in facts["shape"])
        config = _FOUR_BIT[kind](block_size=facts["blocksize"], double_quant=nested)
        offset = float(facts["nested_offset"]) if nested else None
        other = nested and int(facts["nested_blocksize"]) != _NESTED_BLOCK
    except (ValueError, KeyError, TypeError) as error:
        raise broken(name, state.file, TOOL, f"its quant_state is not bitsandbytes' ({error})") from error
    count = shape[0] * shape[1] if len(shape) == 2 and min(shape) > 0 else 0
    blocks = -(-count // config.block_size)
    wanted: dict[str, tuple[str, tuple[str, ...], tuple[int, ...] | int]] = {
        "codes": (name, tuple(_STORAGE), (count + 1) // 2 // _storage_bytes(name, by_name)),
        "absmax": (f"{name}.absmax", ("U8" if nested else "F32",), blocks),
    }
    if nested:
        wanted["nested_absmax"] = (f"{name}.nested_absmax", ("F32",), -(-blocks // _NESTED_BLOCK))
    if other or not count:
        raise broken(name, state.file, TOOL, "its nested blocks or its shape are not ones that bitsandbytes writes")
    parts = take_parts(name, state.file, wanted, by_name, TOOL)
    return BitsandbytesTensor(name, kind.upper(), shape, state.file, total_bytes(parts), parts, config, offset)


def _storage_bytes(name: str, by_name: dict[str, StoredTensor]) -> int:
    return _STORAGE.get(by_name[name].stored_dtype, 1) if name in by_name else 1


def _int8(path: str, by_name: dict[str, StoredTensor]) -> BitsandbytesTensor:
    scales, name = by_name[f"{path}.SCB"], f"{path}.weight"
    shape = by_name[name].shape if name in by_name else (0, 0)
    count = torch.Size(shape).numel()
    wanted: dict[str, tuple[str, tuple[str, ...], tuple[int, ...] | int]] = {
        "codes": (name, ("I8",), count),
        "absmax": (f"{path}.SCB", ("F32",), shape[0]),
    }
    parts = take_parts(name, scales.file, wanted, by_name, TOOL)
    return BitsandbytesTensor(name, "INT8", shape, scales.file, total_bytes(parts), parts, Int8Config())
