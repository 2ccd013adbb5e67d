"""A Hugging Face directory: config.json, safetensors (in one file or in shards), tokenizer files.

The header of a safetensors file (8 bytes of length, then JSON) is read and checked here, before any tensor is: its own
library accepts duplicate names and maps the file, and a lying size must never become an allocation (P62).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from topcoat.errors import TopcoatError
from topcoat.json_files import loads, read_json_object
from topcoat.model.config_json import read_config
from topcoat.model.quantized_tensors import JOINS
from topcoat.model.source import License, Source, StoredTensor, read_exactly, truncated
from topcoat.model.tokenizers import TOKENIZER_FILES, load_tokenizer
from topcoat.quant.dense import NAMES
from topcoat.quant.settings import DenseConfig, QuantConfig

HEADER_CAP = 100_000_000
"""Bytes; the safetensors format sets the same bound."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2}
_WIDTHS |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
FETCH = "fetch the file again"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class SafeTensor(StoredTensor):
    """A tensor inside one safetensors file."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    n_bytes: int

    def raw(self) -> Tensor:
        with open(self.file, "rb", buffering=0) as file:
            return read_exactly(file, self.file, self.offset, self.n_bytes, f"tensor {self.name}")

    def form(self) -> QuantConfig:
        return DenseConfig(format=NAMES.get(_DTYPES.get(self.stored_dtype, torch.float32), "fp32"))

    def decode(self, raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        own = _DTYPES.get(self.stored_dtype)
        if own is None:
            raise TopcoatError(
                f"tensor {self.name} is stored as {self.stored_dtype}, which is no plain float format",
                where=str(self.file),
                fix="use the unquantized checkpoint of this model (BF16, F16 or F32)",
            )
        return raw.view(own).view(self.shape).to(dtype or own)


class DirectorySource(Source):
    """A checkpoint directory in Hugging Face layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self._facts = read_config(path)
        self.license = _license(path)

    def config_facts(self) -> Mapping[str, Any]:
        return self._facts

    @cached_property
    def _tensors(self) -> list[SafeTensor]:
        return read_folder(self.path)

    @cached_property
    def _joined(self) -> list[StoredTensor]:
        quantized = self._facts.get("quantization_config")
        return JOINS[quantized["quant_method"]](self._tensors, quantized) if quantized else list(self._tensors)

    def tensors(self) -> Sequence[StoredTensor]:
        return self._joined

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.path)

    def generation_defaults(self) -> Mapping[str, Any]:
        file = self.path / "generation_config.json"
        return read_json_object(file, FETCH) if file.is_file() else {}

    def files_to_copy(self) -> list[Path]:
        names = [*TOKENIZER_FILES, "generation_config.json"]
        return [self.path / name for name in names if (self.path / name).is_file()] + list(self.license.files)


def read_folder(path: Path) -> list[SafeTensor]:
    """The tensors of all safetensors files of a directory. Raises TopcoatError for files missing or at odds."""
    tensors: dict[str, SafeTensor] = {}
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


def _check_index(folder: Path, tensors: Mapping[str, SafeTensor]) -> None:
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


def read_header(file: Path) -> list[SafeTensor]:
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


def _tensor(file: Path, name: str, entry: Any, start: int) -> SafeTensor:
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
    return SafeTensor(name, dtype, shape, file, start + first, needed)


def _bad(file: Path, what: str) -> TopcoatError:
    return TopcoatError(f"{file.name}: {what}", where=str(file), fix="the file is damaged or forged; fetch it again")


def _license(folder: Path) -> License:
    """The licence as the model card's front matter says it, and the licence files."""
    files = sorted(file for pattern in ("LICENSE*", "NOTICE*", "LICENCE*") for file in folder.glob(pattern))
    card = folder / "README.md"
    name = None
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
        name = found[1] if found else None
    return License(name, tuple(files))
