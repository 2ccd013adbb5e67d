"""GGUF containers: metadata and tensor table first, by the gguf library; then each tensor at its place, as it comes.

A tensor is encoded when it is written, so one is in memory at a time, in whatever order the checkpoint has them. Which
type a tensor is stored in follows llama.cpp's converter: matrices in the type asked for, vectors in F32, rows that are
no whole blocks in F16, and beside types of 4 and 5 bits the embedding and the head in Q8_0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.quant.gguf_blocks import GgufBlocks
from topcoat.quant.settings import GgufConfig

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ALIGNMENT = 32
_BLOCK = 32
_ENDS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Slot:
    """A tensor of the file before it is written: its shape in torch's order, and its type."""

    shape: tuple[int, ...]
    kind: str

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        block, width = gguf.GGML_QUANT_SIZES[Kind[self.kind]]
        return torch.Size(self.shape).numel() // block * width


def kind_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type in which the tensor called `name` is stored where matrices are `wanted`."""
    if len(shape) < 2 or "_norm" in name:
        return "F32"
    if wanted in FLOATS:
        return wanted
    if shape[-1] % _BLOCK:
        return "F16"
    return "Q8_0" if name in _ENDS else wanted


def encode(values: Tensor, kind: str) -> Tensor:
    """`values` in the type `kind`, as bytes: (O, bytes of a row), or (bytes,) for a vector.

    Raises TopcoatError for values that the type cannot hold.
    """
    dtype = FLOATS.get(kind)
    if dtype is None:
        return GgufBlocks(GgufConfig.model_validate({"type": kind})).quantize(values).tensors["blocks"]
    stored = values.to(dtype).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise TopcoatError(
            f"values up to {float(values.abs().max()):.3g} are not finite in {kind}",
            where="--type",
            fix="write --type bf16, whose range is float32's, or check the checkpoint: such values are seldom meant",
        )
    return stored.view(torch.uint8)


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    slots: Mapping[str, Slot],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write the file at `path`: `metadata` by full key, and each of `slots` filled once from `tensors`, as bytes.

    Raises:
        OSError: as the system says it.
        ValueError: a tensor without a slot, of another size or twice, or a slot that stays empty.
    """
    start = _write_header(path, architecture, metadata, slots)
    places: dict[str, int] = {}
    for name, slot in slots.items():
        places[name] = start
        start += -(-slot.n_bytes // ALIGNMENT) * ALIGNMENT
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, start)
        for name, data in tensors:
            content = memoryview(data.contiguous().numpy()).cast("B")  # type: ignore[arg-type]
            if name not in places or len(content) != slots[name].n_bytes:
                raise ValueError(f"{name} of {len(content)} bytes has no place in the file, or a second one")
            at = places.pop(name)
            while content:
                done = os.pwrite(descriptor, content, at)
                content, at = content[done:], at + done
        if places:
            raise ValueError(f"{len(places)} tensors were not written, first {next(iter(places))}")
    finally:
        os.close(descriptor)


def _write_header(path: Path, architecture: str, metadata: Mapping[str, Any], slots: Mapping[str, Slot]) -> int:
    """Everything before the tensors' data; returns where that begins."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, slot in slots.items():
        writer.add_tensor_info(name, slot.shape, np.dtype(np.float32), slot.n_bytes, raw_dtype=Kind[slot.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata entry in the type that llama.cpp reads it in: bool, uint32, float32, text, or a list."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
