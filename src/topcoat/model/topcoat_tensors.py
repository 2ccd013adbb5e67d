"""Linears in Topcoat's own layout, as single tensors: any number format, as `topcoat quantize` writes it.

A linear X is X.weight.NAME for every tensor of its stored form (codes, scale, low, ...), and X.weight.topcoat: UTF-8
JSON as a uint8 tensor, with the format's settings, the shape, and what else dequantizing needs. So each linear says by
itself what it is, and one file can mix formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.model.joined import DTYPES, JoinedTensor, broken, check_groups, total_bytes
from topcoat.model.source import StoredTensor
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.formats import make_format
from topcoat.quant.settings import QuantConfig, read_config, storage
from topcoat.quant.sizes import weight_bytes

STATE = ".topcoat"
METHOD = {"quant_method": "topcoat", "version": 1}
"""The quantization_config of such a checkpoint: all else stands beside the linears."""


@dataclass(frozen=True)
class TopcoatTensor(JoinedTensor):
    """One linear that Topcoat wrote."""

    scalars: dict[str, float]

    def weight(self, raw: Tensor) -> QuantizedWeight:
        shape, pieces = (self.shape[0], self.shape[1]), self.pieces(raw)
        if "group" in pieces:
            check_groups(self, "Topcoat", pieces["group"], pieces["scale"].shape[1])
        return QuantizedWeight(make_format(self.config).config.format, shape, pieces, dict(self.scalars))


def linear_tensors(name: str, weight: QuantizedWeight, config: QuantConfig) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, tensor) for the linear at module path `name`, stored as `config` says."""
    for key, tensor in weight.tensors.items():
        yield f"{name}.weight.{key}", tensor
    facts = {"config": storage(config), "shape": list(weight.shape), "scalars": weight.scalars}
    text = json.dumps(facts, sort_keys=True)
    yield f"{name}.weight{STATE}", torch.tensor(list(text.encode()), dtype=torch.uint8)


def join_topcoat(tensors: Sequence[StoredTensor], facts: Mapping[str, Any]) -> list[StoredTensor]:
    """The tensors of a checkpoint with every linear that Topcoat quantized as one.

    Raises:
        TopcoatError: a newer Topcoat wrote it, or parts of a linear are missing or of another form.
    """
    if facts.get("version") != METHOD["version"]:
        raise TopcoatError(
            f"this checkpoint was quantized by another version of Topcoat (layout {facts.get('version')!r})",
            where="config.json, quantization_config",
            fix="load it with that version, or quantize the original again",
        )
    by_base: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        base, found, key = tensor.name.rpartition(".weight.")
        if found:
            by_base.setdefault(f"{base}.weight", {})[key] = tensor
    joined: list[StoredTensor] = []
    used: set[str] = set()
    for name, parts in by_base.items():
        state = parts.pop(STATE[1:], None)
        if state is None:
            continue
        joined.append(_linear(name, state, parts))
        used |= {state.name, *(part.name for part in parts.values())}
    return [tensor for tensor in tensors if tensor.name not in used] + joined


def _linear(name: str, state: StoredTensor, parts: dict[str, StoredTensor]) -> TopcoatTensor:
    try:
        facts = json.loads(bytes(state.raw().tolist()).decode())
        config, (rows, columns) = read_config(facts["config"]), (int(n) for n in facts["shape"])
        scalars = {str(key): float(value) for key, value in facts["scalars"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(name, state.file, "Topcoat", f"its description cannot be read ({error})") from error
    if min(rows, columns) < 1 or columns > 1 << 24:
        raise broken(name, state.file, "Topcoat", f"its shape is {[rows, columns]}")
    parts = dict(sorted(parts.items()))
    tensor = TopcoatTensor(
        name, config.format.upper(), (rows, columns), state.file, total_bytes(parts), parts, config, scalars
    )
    _check(tensor)
    return tensor


def _check(tensor: TopcoatTensor) -> None:
    """Hold the parts to those that the format makes of one row: names, dtypes and widths, and the bytes of all."""
    rows, columns = tensor.shape
    format = make_format(tensor.config)
    sample = format.example(columns)
    if "group" in tensor.parts and "group" in format.found:
        sample.tensors["group"] = torch.zeros(columns, dtype=torch.int32)
    else:
        format.check_shape(rows, columns)
    wanted, found = set(sample.tensors), set(tensor.parts)
    if wanted != found or set(sample.scalars) != set(tensor.scalars):
        raise broken(tensor.name, tensor.file, "Topcoat", f"it has {sorted(found)}, and should have {sorted(wanted)}")
    expected = sum(weight_bytes(tensor.config, rows, columns))
    for key, one in sample.tensors.items():
        part = tensor.parts[key]
        shape = (rows, *one.shape[1:]) if one.dim() == 2 else one.shape if key == "group" else part.shape
        fits = len(part.shape) == one.dim() and tuple(part.shape) == tuple(shape)
        further = {_name(dtype) for dtype in format.found.get(key, ())}
        if not fits or part.stored_dtype not in {_name(one.dtype), *further}:
            what = f"{part.name} is {part.stored_dtype} {list(part.shape)}"
            raise broken(tensor.name, tensor.file, "Topcoat", what)
        if part.stored_dtype in further:
            usual = 0 if key == "group" else rows * one.nbytes
            expected += torch.Size(part.shape).numel() * DTYPES[part.stored_dtype].itemsize - usual
    if tensor.n_bytes != expected:
        what = f"it has {tensor.n_bytes:,} bytes, and {rows} x {columns} weights take {expected:,}"
        raise broken(tensor.name, tensor.file, "Topcoat", what)


def _name(dtype: torch.dtype) -> str:
    return next((name for name, own in DTYPES.items() if own == dtype), str(dtype))
