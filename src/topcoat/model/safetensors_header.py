"""The headers of safetensors files, checked before any tensor is read; of one file, or of all of a checkpoint's.

A header is 8 bytes of length, then JSON. The format's own library accepts duplicate names and maps the file, and a
lying size must never become an allocation (P62). No torch here: plans read headers alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.json_files import loads, read_json_object
from topcoat.model.damaged import truncated

HEADER_CAP = 100_000_000
"""Bytes; the safetensors format sets the same bound."""
FETCH = "fetch the file again"
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2}
_WIDTHS |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class SafetensorsEntry:
    """What a header says of one tensor."""

    name: str
    stored_dtype: str
    """As the file calls it: BF16, I32, U8."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """In the file, bytes."""
    n_bytes: int


def read_folder_header(path: Path) -> list[SafetensorsEntry]:
    """The tensors of all safetensors files of a directory. Raises TopcoatError for files missing or at odds."""
    tensors: dict[str, SafetensorsEntry] = {}
    for file in _weight_files(path):
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise TopcoatError(
                    f"tensor {tensor.name} is in two files: {tensors[tensor.name].file.name} and {file.name}",
                    where=str(path),
                    fix="remove the file that does not belong to this checkpoint",
                )
            tensors[tensor.name] = tensor
    _check_index(path, tensors)
    return list(tensors.values())


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all present. Raises TopcoatError naming what is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    shards = {file.name for file in folder.iterdir() if _SHARD.fullmatch(file.name)}
    if index.is_file():
        wanted = {str(name) for name in dict(read_json_object(index, FETCH).get("weight_map") or {}).values()}
        odd = sorted(name for name in wanted if os.path.basename(name) != name or not name.endswith(".safetensors"))
        if odd or not wanted:
            raise TopcoatError(
                f"the index names no usable shard: {odd[0]!r}" if odd else "the index lists no tensors",
                where=str(index),
                fix="fetch model.safetensors.index.json again",
            )
        missing = sorted(name for name in wanted if not (folder / name).is_file())
    else:
        wanted = shards
        totals = {int(match[2]) for name in shards if (match := _SHARD.fullmatch(name))}
        expected = {f"model-{i:05d}-of-{n:05d}.safetensors" for n in totals for i in range(1, min(n, 4096) + 1)}
        missing = sorted(expected - shards)
    if missing:
        raise TopcoatError(
            f"missing {len(missing)} of {len(wanted | set(missing))} weight files: {', '.join(missing[:3])}",
            where=str(folder),
            fix="copy or download the missing files",
        )
    if not wanted:
        raise _no_weights(folder)
    return [folder / name for name in sorted(wanted)]


def _no_weights(folder: Path) -> TopcoatError:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return TopcoatError(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read; it is not opened",
            where=str(folder),
            fix="use the safetensors version of this model, or convert it where you trust the file",
        )
    if (folder / "adapter_config.json").is_file():
        return TopcoatError(
            "this is an adapter, not a model", where=str(folder), fix="give model.path the adapter's base model"
        )
    return TopcoatError(
        "there are no weights here: no model.safetensors and no model-00001-of-….safetensors",
        where=str(folder),
        fix="give a complete Hugging Face directory or a .gguf file",
    )


def _check_index(folder: Path, tensors: Mapping[str, SafetensorsEntry]) -> None:
    """What the index promises must be where it says."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    for name, shard in read_json_object(index, FETCH)["weight_map"].items():
        if name not in tensors or tensors[name].file.name != shard:
            raise TopcoatError(
                f"the index says tensor {name} is in {shard}, but it is not",
                where=str(index),
                fix="the shards are of different checkpoints; fetch all of them again",
            )


def read_header(file: Path) -> list[SafetensorsEntry]:
    """The tensors of one safetensors file, in file order, after every promise of its header was checked.

    Raises TopcoatError naming the file and what is wrong.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            if length > HEADER_CAP:
                raise _bad(file, f"the header claims {length:,} bytes, more than the format's {HEADER_CAP:,}")
            if length + 8 > size:
                raise truncated(file, length + 8, size)
            text = opened.read(length)
    except OSError as error:
        raise TopcoatError(f"{file.name} cannot be read: {error.strerror}", where=str(file)) from error
    header = _parse(file, text)
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            relation = "overlaps another tensor" if tensor.offset < end else "leaves unused bytes before it"
            raise _bad(file, f"tensor {tensor.name} {relation}")
        end += tensor.n_bytes
    if end != size:
        raise truncated(file, end, size)
    return tensors


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = loads(text.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError; a name that stands twice is one
        raise _bad(file, f"the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _bad(file, "the header is not a JSON object")
    return header


def _tensor(file: Path, name: str, entry: Any, start: int) -> SafetensorsEntry:
    """One header entry, checked by itself: dtype, shape, and the bytes they need against the bytes it claims."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _bad(file, f"the header entry of tensor {name} is incomplete") from error
    if dtype not in _WIDTHS:
        raise _bad(file, f"tensor {name} has the unknown dtype {dtype!r}")
    if any(type(n) is not int or n < 0 for n in (*shape, first, last)):
        raise _bad(file, f"tensor {name} has sizes that are not whole numbers from 0: {list(shape)}, {first}, {last}")
    needed = math.prod(shape) * _WIDTHS[dtype]
    if last - first != needed:
        sizes = f"expected {needed:,} bytes, found {last - first:,}"
        raise _bad(file, f"tensor {name} of shape {list(shape)} in {dtype}: {sizes}")
    return SafetensorsEntry(name, dtype, shape, file, start + first, needed)


def _bad(file: Path, what: str) -> TopcoatError:
    return TopcoatError(f"{file.name}: {what}", where=str(file), fix="the file is damaged or forged; fetch it again")
