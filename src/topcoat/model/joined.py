"""A quantized linear of a file as one tensor: several tensors of the file, named as the weight they hold.

It reads back as numbers, or is handed over as it lies where the file's own format is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.model.source import StoredTensor
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.formats import make_format
from topcoat.quant.settings import QuantConfig, storage

DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
"""Of the parts, as safetensors names them."""


@dataclass(frozen=True)
class JoinedTensor(StoredTensor):
    """One quantized linear."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    file: Path
    n_bytes: int
    parts: dict[str, StoredTensor]
    """By the names that `weight` knows them by."""
    config: QuantConfig
    """The format and settings the file was written in."""

    def raw(self) -> Tensor:
        return torch.cat([part.raw() for part in self.parts.values()])

    def pieces(self, raw: Tensor) -> dict[str, Tensor]:
        """`raw` as the parts it is made of, each in its own dtype and shape, in memory of its own."""
        sizes = [part.n_bytes for part in self.parts.values()]
        return {
            key: own.clone().view(DTYPES[part.stored_dtype]).view(part.shape)
            for (key, part), own in zip(self.parts.items(), raw.split(sizes), strict=True)
        }

    @abstractmethod
    def weight(self, raw: Tensor) -> QuantizedWeight:
        """The codes and constants of `raw` as `config`'s format stores them."""

    def decode(self, raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return make_format(self.config).dequantize(self.weight(raw), dtype or torch.float32)

    def packed(self, raw: Tensor, wanted: QuantConfig) -> QuantizedWeight | None:
        """The codes as they lie, if `wanted` stores as the file does, however codes were found."""
        return self.weight(raw) if storage(wanted) == storage(self.config) else None

    def form(self) -> QuantConfig:
        return self.config


def join(
    tensors: Sequence[StoredTensor],
    parts: Sequence[str],
    linear: Callable[[str, StoredTensor, Mapping[str, StoredTensor]], JoinedTensor],
) -> list[StoredTensor]:
    """`tensors`, each linear with a `.qweight` as one: `linear(path, qweight, by_name)` makes it of its `parts`."""
    by_name = {tensor.name: tensor for tensor in tensors}
    joined: list[StoredTensor] = []
    used: set[str] = set()
    for tensor in tensors:
        if tensor.name.endswith(".qweight"):
            path = tensor.name.removesuffix(".qweight")
            joined.append(linear(path, tensor, by_name))
            used |= {f"{path}.{part}" for part in parts}
    return [tensor for tensor in tensors if tensor.name not in used] + joined


def take_parts(
    name: str,
    file: Path,
    wanted: Mapping[str, tuple[str, tuple[str, ...], tuple[int, ...] | int]],
    by_name: Mapping[str, StoredTensor],
    tool: str,
) -> dict[str, StoredTensor]:
    """The tensors of one linear, by our names; `wanted` has their names, dtypes and shapes (or counts) in the file.

    Raises:
        TopcoatError: one is missing or of another form.
    """
    parts = {}
    for key, (stored, dtypes, shape) in wanted.items():
        part = by_name.get(stored)
        fits = part is not None and part.stored_dtype in dtypes
        if part is not None and isinstance(shape, int):
            fits = fits and torch.Size(part.shape).numel() == shape
        elif part is not None:
            fits = fits and tuple(part.shape) == shape
        if part is None or not fits:
            found = "not there" if part is None else f"{part.stored_dtype} {list(part.shape)}"
            size = shape if isinstance(shape, int) else list(shape)
            raise broken(name, file, tool, f"{stored} is {found}, and should be {size} of {' or '.join(dtypes)}")
        parts[key] = part
    return parts


def total_bytes(parts: Mapping[str, StoredTensor]) -> int:
    """Bytes of all parts together."""
    return sum(part.n_bytes for part in parts.values())


def check_groups(tensor: JoinedTensor, tool: str, group: Tensor, count: int) -> None:
    """Raises TopcoatError where the groups of the columns, (I,) int32, are not among the `count` there are."""
    if int(group.min()) < 0 or int(group.max()) >= count:
        raise broken(tensor.name, tensor.file, tool, f"g_idx names groups outside its {count}")


def broken(name: str, file: Path, tool: str, what: str) -> TopcoatError:
    """A linear whose parts are not what `tool` writes."""
    return TopcoatError(
        f"tensor {name} was quantized by {tool}, but {what}",
        where=str(file),
        fix="fetch the checkpoint again, or give the original one; model.quantization quantizes it while it loads",
    )
