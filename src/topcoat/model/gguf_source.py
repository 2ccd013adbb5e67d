"""A single GGUF file as a Source: F32, F16, BF16 and every block type the gguf library can dequantize.

Blocks become numbers a few rows at a time, so reading a tensor costs its bytes and its values, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from topcoat.errors import TopcoatError
from topcoat.kernels.gguf_dequant import BLOCK_TYPES, blocks_are_finite
from topcoat.model.gguf_config import gguf_family, read_gguf_config
from topcoat.model.gguf_header import GgufEntry, read_header
from topcoat.model.gguf_names import ROPE_TABLES, GgufFamily, hf_name
from topcoat.model.gguf_tokenizer import read_gguf_tokenizer
from topcoat.model.source import License, Source, StoredTensor, read_exactly
from topcoat.quant.base import QuantizedWeight, require_finite
from topcoat.quant.gguf_blocks import stored_blocks
from topcoat.quant.settings import GgufConfig, QuantConfig

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_PIECE = 1 << 21
"""Weights dequantized at a time: bounds NumPy's float32 temporaries to a few dozen MiB."""


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor inside a GGUF file, under its transformers name and in transformers' layout once decoded."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    file: Path
    n_bytes: int
    entry: GgufEntry
    family: GgufFamily
    config: PretrainedConfig | None
    """None for the tables that the config is made from."""

    def raw(self) -> Tensor:
        with open(self.file, "rb", buffering=0) as file:
            return read_exactly(file, self.file, self.entry.offset, self.n_bytes, f"tensor {self.entry.name}")

    def decode(self, raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        own = _PLAIN.get(self.entry.type)
        if own is None:
            return self._restored(self._dequantized(raw, dtype or torch.float32), dtype)
        return self._restored(raw.view(own).view(self.shape), dtype or own)

    def form(self) -> QuantConfig:
        return GgufConfig()

    def packed(self, raw: Tensor, wanted: QuantConfig) -> QuantizedWeight | None:
        """The blocks as they lie, rows in transformers' order; plain floats as they are."""
        is_stored = isinstance(wanted, GgufConfig) and wanted.type == "stored"
        if not is_stored or len(self.shape) != 2 or self.config is None:
            return None
        shape, kind = (self.shape[0], self.shape[1]), BLOCK_TYPES.get(self.stored_dtype)
        if self.entry.type in _PLAIN:
            values = self.decode(raw).contiguous()
            require_finite(torch.stack(torch.aminmax(values)), values)
            return QuantizedWeight("gguf", shape, {"weight": values})
        if kind is None:
            raise TopcoatError(
                f"tensor {self.entry.name} is stored as {self.stored_dtype}, which cannot be trained as it lies",
                where=str(self.file),
                fix=f"use a GGUF in {', '.join(BLOCK_TYPES)}, or another model.quantization",
            )
        rows = raw.view(self.shape[0], -1)  # a block never crosses rows, so rows move with their blocks
        blocks = self.family.restore(self.entry.name, rows, self.config).contiguous()
        if not blocks_are_finite(blocks, kind):
            raise TopcoatError(
                f"tensor {self.name}: some scales of its blocks are not finite",
                where=str(self.file),
                fix="the file is damaged or was made of a diverged model; fetch it again or take another",
            )
        return stored_blocks(blocks, kind, shape)

    def _restored(self, values: Tensor, dtype: torch.dtype | None) -> Tensor:
        if self.config is not None:
            values = self.family.restore(self.entry.name, values, self.config)
        return values if dtype is None else values.to(dtype)

    def _dequantized(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        columns = self.shape[-1]
        rows = raw.view(-1, self.n_bytes * columns // max(1, torch.Size(self.shape).numel())).numpy()
        out = torch.empty(len(rows), columns, dtype=dtype)
        step = max(1, _PIECE // columns)
        for start in range(0, len(rows), step):
            try:
                piece = gguf.quants.dequantize(rows[start : start + step], self.entry.type)
            except NotImplementedError as error:
                raise TopcoatError(
                    f"tensor {self.entry.name} is stored as {self.stored_dtype}, which cannot be read back",
                    where=str(self.file),
                    fix="use a GGUF in F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_1 or Q4_0",
                ) from error
            out[start : start + step] = torch.from_numpy(piece)
        return out.view(self.shape)


class GgufSource(Source):
    """A GGUF file: metadata for config and tokenizer, and the tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.family = gguf_family(self.header)
        tables = [entry for entry in self.header.entries if entry.name in ROPE_TABLES]
        self._rope = {entry.name: self._tensor(entry, None).read(torch.float32).tolist() for entry in tables}
        self.config = read_gguf_config(self.header, self._rope)
        self._tensors = [self._tensor(e, self.config) for e in self.header.entries if e.name not in ROPE_TABLES]
        name = self.header.metadata.get("general.license")
        self.license = License(name if isinstance(name, str) else None)

    def _tensor(self, entry: GgufEntry, config: PretrainedConfig | None) -> GgufTensor:
        name = hf_name(self.family, entry.name) or entry.name
        return GgufTensor(name, entry.type.name, entry.shape, self.path, entry.n_bytes, entry, self.family, config)

    def config_facts(self) -> Mapping[str, Any]:
        architecture = self.header.metadata["general.architecture"]
        own = {key: value for key, value in self.header.metadata.items() if key.startswith(f"{architecture}.")}
        return own | {"general.architecture": architecture} | self._rope

    def tensors(self) -> Sequence[StoredTensor]:
        return self._tensors

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return read_gguf_tokenizer(self.header)

    def generation_defaults(self) -> Mapping[str, Any]:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        facts = self.config.to_dict()
        return {name: facts[name] for name in ids if facts.get(name) is not None}

    def files_to_copy(self) -> list[Path]:
        return []
