"""A merged model whose linears stay the integers they were trained as: the same codes, other lowest values.

Written in Topcoat's own layout (model/topcoat_tensors.py) with scales and lowest values in float32, so that nothing at
all is rounded: programs that read plain weights only are served by `topcoat export --to gguf`, whose Q4_1 rounds the
lowest values to fp16. What carries no adapter is written as it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.adapters.settings import QaloraConfig
from topcoat.exporting.integers import merged_integers
from topcoat.exporting.merged import merged_tensors, output_dtype
from topcoat.model.load import Base
from topcoat.model.topcoat_tensors import METHOD, linear_tensors
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.bits import pack_bits
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GgufConfig, IntConfig, QuantConfig

QUANTIZATION = METHOD
"""The quantization_config of such a directory."""


def keeps_integers(base: Base, adapters: Adapters) -> bool:
    """Whether a merge of `adapters` leaves integer weights integers; a head of labels is for transformers to load."""
    if not isinstance(adapters.config, QaloraConfig) or base.head is not None:
        return False
    return any(merged_integers(layer) is not None for layer in adapters.layers.values())


def dtype_beside(base: Base) -> torch.dtype:
    """The dtype of all that is no integer linear: the checkpoint's own, float32 where that has blocks of some kind."""
    plain = all(tensor.stored_dtype in ("F32", "F16", "BF16") for tensor in base.source.tensors())
    return output_dtype(base) if plain else torch.float32


def linears_of(base: Base, adapters: Adapters) -> dict[str, FrozenLinear | Adapter]:
    """Path -> frozen linear, or the adapter that stands on it."""
    found: dict[str, FrozenLinear | Adapter] = {
        path: module
        for path, module in base.model.named_modules()
        if isinstance(module, FrozenLinear) and not path.endswith(".base")
    }
    return found | adapters.layers


def integer_tensors(base: Base, adapters: Adapters, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the merged model: integer linears as codes, scales and lowest values, the rest in `dtype`."""
    linears = linears_of(base, adapters)
    for name, tensor in merged_tensors(base, adapters, dtype):
        path, _, kind = name.rpartition(".")
        stored = _stored(linears[path]) if kind == "weight" and path in linears else None
        if stored is None:
            yield name, tensor
        else:
            yield from linear_tensors(path, *stored)


def _stored(module: FrozenLinear | Adapter) -> tuple[QuantizedWeight, QuantConfig] | None:
    """What `module` computes with as a number format stores it, and that format; None for plain numbers."""
    merged = merged_integers(module)
    if merged is not None:
        bits = _bits(module)
        settings: Mapping[str, object] = {"format": f"int{bits}", "group_size": merged.group, "scale_dtype": "fp32"}
        codes = pack_bits(merged.codes, bits)
        tensors = {"codes": codes, "scale": merged.scale, "low": merged.low}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        shape = (merged.codes.shape[0], merged.codes.shape[1])
        weight = QuantizedWeight(f"int{bits}", shape, tensors, {"group_size": merged.group})
        return weight, IntConfig.model_validate(settings)
    if (
        isinstance(module, FrozenLinear)
        and module.format.quantized
        and not isinstance(module.format.config, GgufConfig)
    ):
        return module.weight_state.to("cpu"), module.format.config
    return None


def _bits(module: FrozenLinear | Adapter) -> int:
    """Of one code."""
    linear = module if isinstance(module, FrozenLinear) else module.base
    codes = linear.weight_state.tensors.get("codes")
    return 4 if codes is None else 8 * codes.shape[1] // linear.in_features
