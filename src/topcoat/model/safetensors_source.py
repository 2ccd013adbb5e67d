"""A Hugging Face directory: config.json, safetensors (in one file or in shards), tokenizer files."""

from __future__ import annotations

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
from topcoat.json_files import read_json_object
from topcoat.model.config_json import read_config
from topcoat.model.quantized_tensors import JOINS
from topcoat.model.safetensors_header import FETCH, SafetensorsEntry, read_folder_header, read_header
from topcoat.model.source import License, Source, StoredTensor, read_exactly
from topcoat.model.tokenizers import TOKENIZER_FILES, load_tokenizer
from topcoat.quant.dense import NAMES
from topcoat.quant.settings import DenseConfig, QuantConfig

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class SafeTensor(SafetensorsEntry, StoredTensor):
    """A tensor inside one safetensors file."""

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


def read_tensors(file: Path) -> list[SafeTensor]:
    """The tensors of one safetensors file, in file order. Raises TopcoatError as `read_header` does."""
    return _readable(read_header(file))


def read_folder(path: Path) -> list[SafeTensor]:
    """The tensors of all safetensors files of a directory. Raises TopcoatError for files missing or at odds."""
    return _readable(read_folder_header(path))


def _readable(entries: list[SafetensorsEntry]) -> list[SafeTensor]:
    return [SafeTensor(**vars(entry)) for entry in entries]


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
