"""A checkpoint in another number format: read one tensor, quantize it, write it, forget it.

The result is a Hugging Face directory, in one of four layouts:

    bitsandbytes   nf4, fp4 and int8, as transformers loads them with no help from Topcoat
    GPTQ           gptq, for the programs that read GPTQ files
    Topcoat's      every other format and all mixtures; Topcoat loads them, bit for bit (model/topcoat_tensors.py)
    plain          dense formats: an ordinary checkpoint in that dtype

Quantized are the linears inside the decoder blocks, and head and embedding where an override names them; all else is
kept in the compute dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.errors import Problem, TopcoatError
from topcoat.exporting import bitsandbytes, gptq_file
from topcoat.exporting.calibrating import Rounded
from topcoat.exporting.companions import write_companions
from topcoat.exporting.shards import SHARD_BYTES, write_shards
from topcoat.files import publish_directory, write_file
from topcoat.model import topcoat_tensors
from topcoat.model.fill import block_linears, formats_of, match_all, named_outside
from topcoat.model.skeleton import build_skeleton, check_sizes
from topcoat.model.source import Source, StoredTensor
from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.dense import DTYPES
from topcoat.quant.settings import GgufConfig, GptqConfig, Int8Config, QuantConfig, SixteenConfig, StoredConfig
from topcoat.quant.sizes import weight_bytes


@dataclass(frozen=True)
class _Plan:
    """What is written where: the model's shape, the format of each quantized linear, and the layout of all."""

    model: PreTrainedModel
    modules: dict[str, nn.Linear | nn.Embedding]
    formats: dict[str, QuantFormat]
    layout: str
    config: QuantConfig
    dtype: torch.dtype
    """Of all that is not quantized."""

    def tensors(self, path: str, weight: QuantizedWeight) -> Iterable[tuple[str, Tensor]]:
        """(name in the file, tensor) of one quantized linear."""
        if self.layout == "bitsandbytes":
            return bitsandbytes.linear_tensors(path, weight, self.dtype)
        if self.layout == "GPTQ":
            return gptq_file.linear_tensors(path, weight)
        if not self.formats[path].quantized:
            return [(f"{path}.weight", weight.tensors["weight"])]
        return topcoat_tensors.linear_tensors(path, weight, self.formats[path].named)

    def nbytes(self) -> int:
        """Bytes of all that `formats` stores, but for what only files of other programs have."""
        shapes = {path: (module.weight.shape[0], module.weight.shape[1]) for path, module in self.modules.items()}
        return sum(sum(weight_bytes(self.formats[path].named, *shape)) for path, shape in shapes.items())


def quantize_checkpoint(
    source: Source,
    out: Path,
    config: QuantConfig,
    compute_dtype: str = "bf16",
    shard_bytes: int = SHARD_BYTES,
    rounded: Iterable[Rounded] = (),
) -> dict[str, Any]:
    """Write `source` in the format of `config` to the directory `out` (not there yet); returns a report.

    `compute_dtype` (bf16, fp16 or fp32) is the dtype of all that is not quantized and the one transformers will compute
    in; a dense format is its own. `rounded` brings the linears that calibration rows have rounded. Memory: the largest
    tensor and one shard. The report: `format`, `layout`, `linears` quantized, `tensors` and `bytes` written,
    `source_bytes`, `files`, `bits_per_weight` of the linears, `warnings`, and the `errors` of calibrated linears.

    Raises:
        TopcoatError: `out` exists, the checkpoint does not fit its config, or a weight cannot be stored; nothing is
            left behind.
    """
    plan = _plan(source, config, compute_dtype)
    with publish_directory(out, _expected_bytes(source, plan)) as folder:
        written = _Written(source, plan, rounded)
        files = write_shards(written, folder, shard_bytes)
        _write_config(source, plan, folder)
        write_companions(source, source.tokenizer(), folder, None)  # templates as they are: there may be several
    weights = sum(module.weight.numel() for module in plan.modules.values())
    report = {
        "format": config.format,
        "layout": plan.layout,
        "linears": len(plan.modules),
        "tensors": len(files),
        "bytes": written.bytes,
        "source_bytes": sum(tensor.n_bytes for tensor in source.tensors()),
        "files": sorted(set(files.values())),
        "bits_per_weight": 8 * written.quantized_bytes / weights,
        "warnings": _warnings(plan),
    }
    return report | ({"errors": written.errors} if written.errors else {})


def _plan(source: Source, config: QuantConfig, compute_dtype: str) -> _Plan:
    if isinstance(config, StoredConfig) or (isinstance(config, GgufConfig) and config.type == "stored"):
        raise TopcoatError(
            f"format {config.format} keeps what is there already, so there is nothing to write",
            where="topcoat quantize",
            fix="copy the files instead, or name a format such as nf4",
        )
    own = DTYPES.get(config.format)
    dtype = DTYPES[compute_dtype] if own is None else own
    check_sizes(source.config, [tensor.shape for tensor in source.tensors()], str(source.path))
    model = build_skeleton(source.config, dtype, "eager")
    places = match_all(model, source)
    outside = named_outside(model, config, places)
    modules = {**block_linears(model), **outside}
    formats = formats_of(modules, config, places, outside)
    return _Plan(model, modules, formats, _layout(config), config, dtype)


def _layout(config: QuantConfig) -> str:
    if config.overrides:
        return "Topcoat"
    if isinstance(config, SixteenConfig | Int8Config):
        return "bitsandbytes"
    return "GPTQ" if isinstance(config, GptqConfig) else "plain" if config.format in DTYPES else "Topcoat"


class _Written:
    """(name in the file, tensor) of all that is written, under the model's own names; counts bytes as they pass."""

    def __init__(self, source: Source, plan: _Plan, rounded: Iterable[Rounded]) -> None:
        self._source, self._plan, self._rounded = source, plan, rounded
        self.bytes = self.quantized_bytes = 0
        self.errors: dict[str, dict[str, float]] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors():
            self.bytes += tensor.nbytes
            yield name, tensor

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        plan = self._plan
        for one in self._rounded:
            self.errors[one.path] = {"error": one.error, "nearest_error": one.nearest_error}
            yield from self._linear(one.path, one.weight)
        for place in match_all(plan.model, self._source):
            name, stored = place.names[0], place.stored
            path = name.removesuffix(".weight")
            if place.is_copy or path in self.errors:  # a tied copy, or rounded already
                continue
            try:
                if name.endswith(".weight") and path in plan.formats:
                    yield from self._linear(path, _quantized(stored, plan.formats[path]))
                else:
                    yield name, _finite(stored.read(plan.dtype))
            except TopcoatError as error:
                raise _named(error, stored) from error

    def _linear(self, path: str, weight: QuantizedWeight) -> Iterable[tuple[str, Tensor]]:
        self.quantized_bytes += weight.nbytes
        return self._plan.tensors(path, weight)


def _quantized(stored: StoredTensor, format: QuantFormat) -> QuantizedWeight:
    """The weight in `format`: as it lies where the file has it so."""
    raw = stored.raw()
    return stored.packed(raw, format.named) or format.quantize(stored.decode(raw))


def _finite(values: Tensor) -> Tensor:
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise TopcoatError(
            f"{bad} of {values.numel()} values are not finite in {values.dtype}",
            fix="the checkpoint is damaged, or its values need a wider dtype: use compute_dtype bf16 or fp32",
        )
    return values


def _named(error: TopcoatError, stored: StoredTensor) -> TopcoatError:
    """The same problems, with the tensor's name and file."""
    return TopcoatError.gather(
        [
            problem
            if stored.name in problem.what
            else Problem(f"{stored.name}: {problem.what}", str(stored.file), problem.fix)
            for problem in error.problems
        ]
    )


def _expected_bytes(source: Source, plan: _Plan) -> int:
    """What the weight files will take, within a per cent: for the message when the disk is too small."""
    quantized = {f"{path}.weight" for path in plan.modules}
    rest = [tensor for tensor in source.tensors() if tensor.name not in quantized]
    return sum(torch.Size(tensor.shape).numel() for tensor in rest) * plan.dtype.itemsize + plan.nbytes()


def _write_config(source: Source, plan: _Plan, folder: Path) -> None:
    """config.json: the source's, with this dtype, and the quantization where there is one."""
    facts = source.config.to_dict()
    facts.pop("quantization_config", None)
    facts |= {"dtype": str(plan.dtype).removeprefix("torch."), "architectures": [type(plan.model).__name__]}
    quantization: Mapping[str, Any] | None = None
    if plan.layout == "bitsandbytes":
        inside = plan.modules
        skipped = [n for n, m in plan.model.named_modules() if isinstance(m, nn.Linear) and n not in inside]
        quantization = bitsandbytes.quantization_config(plan.config, plan.dtype, skipped)
    elif plan.layout == "GPTQ":
        assert isinstance(plan.config, GptqConfig)
        quantization = gptq_file.quantization_config(plan.config)
    elif plan.layout == "Topcoat":
        quantization = topcoat_tensors.METHOD
    if quantization is not None:
        facts["quantization_config"] = dict(quantization)
    write_file(folder / "config.json", json.dumps(facts, indent=2, sort_keys=True, default=str) + "\n")


def _warnings(plan: _Plan) -> list[str]:
    config = plan.config
    if plan.layout != "bitsandbytes" or not isinstance(config, SixteenConfig):
        return []
    crossing = sorted({m.weight.shape[1] for m in plan.modules.values() if m.weight.shape[1] % config.block_size})
    if not crossing:
        return []
    widths = ", ".join(str(width) for width in crossing)
    return [
        f"blocks of {config.block_size} weights cross rows where in_features is {widths}; bitsandbytes 0.50 reads such "
        "weights back wrongly on CPUs with AVX-512 (GPUs and Topcoat read them right)"
    ]
