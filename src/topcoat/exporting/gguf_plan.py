"""What a GGUF export writes: each tensor's name and type, the metadata, and the bytes one tensor at a time.

Where every linear of the blocks is integers that a QA-LoRA was trained on, Q4_1 holds those very integers, and nothing
else is rounded either: the rest keeps the checkpoint's own 16 bits, or, of a base that is a GGUF itself, its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.adapters.qalora import Qalora
from topcoat.data.render import Renderer
from topcoat.exporting.gguf_file import FLOATS, Slot, encode, kind_of
from topcoat.exporting.gguf_layout import GgufLayout, layout_of
from topcoat.exporting.gguf_metadata import model_metadata, require_same_model
from topcoat.exporting.gguf_vocabulary import copied_metadata, vocabulary_metadata
from topcoat.exporting.integer_model import linears_of
from topcoat.exporting.integers import as_q4_1, merged_integers, with_halves
from topcoat.exporting.merged import merged_tensors, output_dtype
from topcoat.model.gguf_source import GgufSource, GgufTensor
from topcoat.model.load import Base
from topcoat.model.skeleton import build_skeleton
from topcoat.quant.gguf_blocks import GgufBlocks
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GgufConfig

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


class GgufPlan:
    """One export: what each tensor of the model is called in the file, and in which type."""

    def __init__(self, base: Base, adapters: Adapters, wanted: str | None) -> None:
        self.base, self.adapters = base, adapters
        self.layout: GgufLayout = layout_of(base.source.config)
        self.linears = linears_of(base, adapters)
        own = _NAMES[output_dtype(base)]
        inside = f"{self.layout.family.blocks}."
        fits = _all_fit({path: module for path, module in self.linears.items() if path.startswith(inside)})
        self.kind = wanted or ("Q4_1" if fits else "F16" if own == "F32" else own)
        self.exact = self.kind == "Q4_1" and fits
        self.stored = {t.name: t for t in base.source.tensors() if isinstance(t, GgufTensor)}
        self.changed = {*adapters.layers, *adapters.copies, *adapters.rows, *adapters.tied}
        config = base.source.config
        tied = f"{self.layout.family.top['output']}.weight" if config.tie_word_embeddings else ""
        parameters = build_skeleton(config, torch.float32, "eager").state_dict()
        shapes = {name: tuple(value.shape) for name, value in parameters.items() if name != tied}
        self.names = {hf: self.layout.name(hf) for hf in shapes}
        self.slots = {name: Slot(shapes[hf], self._kind(hf, name, shapes[hf], own)) for hf, name in self.names.items()}
        self.metadata, self.tables = model_metadata(self.layout)
        require_same_model(self.layout, self.metadata, self.slots, self.tables)
        self.slots |= {name: Slot(tuple(table.shape), "F32") for name, table in self.tables.items()}
        self.metadata |= self._general() | self._tokenizer()

    def _kind(self, hf: str, name: str, shape: tuple[int, ...], own: str) -> str:
        """The type of one tensor; beside exact integers nothing is rounded that need not be."""
        if self.is_integers(hf):
            return "Q4_1"
        if self.copied(hf) is not None:
            return self.stored[hf].stored_dtype
        return kind_of(name, shape, own if self.exact else self.kind)

    def is_integers(self, hf: str) -> bool:
        """Whether this tensor is written as the integers that it is, with no rounding to a grid.

        True also of a QA-LoRA's that do not fit: they were trained to be exact, so writing them says what is wrong.
        """
        module = self.linears.get(hf.removesuffix(".weight")) if hf.endswith(".weight") else None
        return self.kind == "Q4_1" and module is not None and (isinstance(module, Qalora) or _fits(module))

    def copied(self, hf: str) -> GgufTensor | None:
        """The tensor of the base's own GGUF, where the file holds it byte for byte."""
        return self.stored.get(hf) if self.exact and hf.rpartition(".")[0] not in self.changed else None

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """(GGUF's name, bytes) of every tensor, in the checkpoint's order."""
        for name, table in self.tables.items():
            yield name, encode(table, "F32")
        for hf, values in self.merged():
            name = self.names[hf]
            yield name, self._bytes(hf, name, values)

    def _bytes(self, hf: str, name: str, values: Tensor) -> Tensor:
        if self.is_integers(hf):
            weight = merged_integers(self.linears[hf.removesuffix(".weight")])
            assert weight is not None
            return self.layout.rows(name, as_q4_1(weight, hf)).contiguous()
        copied = self.copied(hf)
        if copied is not None:
            return copied.raw()
        return encode(self.layout.values(name, values), self.slots[name].kind)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """(transformers' name, merged values in float32) of every tensor that the file holds."""
        for hf, values in merged_tensors(self.base, self.adapters, torch.float32):
            if hf in self.names:
                yield hf, values

    def rounded(self, hf: str, values: Tensor) -> Tensor:
        """`values` as the type of the tensor gives them back, by the formulas of quant/ and not of the file."""
        if self.is_integers(hf):
            weight = merged_integers(self.linears[hf.removesuffix(".weight")])
            assert weight is not None
            return with_halves(weight).dense().cpu()
        copied = self.copied(hf)
        if copied is not None:
            return copied.read(torch.float32)
        kind = self.slots[self.names[hf]].kind
        if kind in FLOATS:
            return values.to(FLOATS[kind]).float()
        format = GgufBlocks(GgufConfig.model_validate({"type": kind}))
        return format.dequantize(format.quantize(values), torch.float32)

    def _general(self) -> dict[str, Any]:
        """What the file says about itself."""
        source = self.base.source
        named = {"general.license": source.license.name} if source.license.name else {}
        return named | {
            "general.type": "model",
            "general.name": Path(str(self.base.settings.path)).stem,
            "general.file_type": _FILE_TYPES[self.kind],
            "general.quantization_version": 2,
        }

    def _tokenizer(self) -> dict[str, Any]:
        renderer = Renderer(self.base.tokenizer)
        if isinstance(self.base.source, GgufSource):
            return copied_metadata(self.base.source.header, renderer.template)
        stops = sorted(renderer.stop_ids)
        rows = self.slots["token_embd.weight"].shape[0]
        return vocabulary_metadata(self.base.tokenizer, rows, renderer.template, stops)


def _fits(module: FrozenLinear | Adapter) -> bool:
    found = merged_integers(module)
    return found is not None and found.fits_blocks()


def _all_fit(linears: Mapping[str, FrozenLinear | Adapter]) -> bool:
    """Whether every linear of the blocks is integers that Q4_1 holds."""
    return bool(linears) and all(_fits(module) for module in linears.values())
