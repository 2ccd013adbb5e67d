"""A safetensors file as pieces of memory: header, then each tensor's own bytes, none copied.

length (8 bytes, little endian) | header (JSON, padded to 8) | tensor bytes, without gaps

The library's own writer copies every tensor first, and writes the header as its version likes. Here saving needs no
memory beyond the tensors, and the same tensors always give the same bytes, so adapters can be compared by SHA-256.
Widest type first, then by name, as the library orders them: each tensor stays aligned. Reading is the library's.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's name of each type."""


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without gradient, contiguous, in host memory: the very same memory where they are so already."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def pieces(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """What a safetensors file of these host tensors holds, in order. Views: valid while the tensors do not change."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)) + text, *(_bytes_of(tensors[name]) for name in names if tensors[name].numel())]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def missing_or_changed(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensor is not in the file with its shape and type, or that only the file has; the library reads it.

    Raises:
        safetensors.SafetensorError: not a safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
        wrong = set(found) ^ set(tensors)
        for name in set(found) & set(tensors):
            piece = found[name]
            tensor = tensors[name]
            if piece.get_shape() != list(tensor.shape) or piece.get_dtype() != DTYPES[tensor.dtype]:
                wrong.add(name)
    return sorted(wrong)
