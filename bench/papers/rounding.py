"""What is left of a trained model once its linears are integers: merged exactly, or merged and rounded again.

exact      a QA-LoRA in its own integers, the lowest values rounded to fp16 as a Q4_1 file holds them; float32
unmerged   a QA-LoRA as it was trained, base plus update, in float32: what `exact` is compared with
nearest    base + adapter merged to bf16, then rounded to integers
gptq       the same with GPTQ's rounding on the training rows, through a checkpoint as `topcoat merge` writes it
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.papers.row_losses import Losses, row_losses
from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.data.load import Dataset
from topcoat.exporting.integers import merged_integers, with_halves
from topcoat.exporting.merge import write_model
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.dense import NAMES
from topcoat.quant.formats import make_format
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, IntConfig
from topcoat.recipe.schema import Recipe
from topcoat.runs.listener import Silent
from topcoat.runs.rounding import round_into

CALIBRATION_ROWS = 64


def rounded_losses(
    asked: Sequence[Mapping[str, Any]], recipe: Recipe, base: Base, adapters: Adapters, data: Dataset
) -> dict[str, Losses]:
    """Name of each of `asked` -> the losses of the validation rows; the adapter is taken off at the end."""
    gptq = {to["name"]: _by_gptq(to, recipe, base, adapters, data) for to in asked if to["how"] == "gptq"}
    layers = dict(adapters.layers)
    adapters.detach()
    found = {}
    for to in asked:
        if to["how"] == "gptq":
            found[to["name"]] = gptq[to["name"]]
            continue
        dtype = base.compute_dtype if to["how"] == "nearest" else torch.float32  # bf16 rounds more than a merge costs
        base.model.to(dtype)
        for path, layer in layers.items():
            _put(base, path, dense(WAYS[to["how"]](layer, to), layer, dtype))
        found[to["name"]] = row_losses(base, adapters, data)
    return found


def dense(weight: Tensor, layer: Adapter, dtype: torch.dtype) -> FrozenLinear:
    """A frozen linear that computes with `weight` (O, I), in `dtype`."""
    state = QuantizedWeight(NAMES[dtype], tuple(weight.shape), {"weight": weight.to(dtype)})  # type: ignore[arg-type]
    return FrozenLinear(state, make_format(DenseConfig(format=NAMES[dtype])), layer.base.bias, dtype)


def _exact(layer: Adapter, to: Mapping[str, Any]) -> Tensor:
    """The integers of a QA-LoRA with its update in their lowest values, as a file would hold them."""
    found = merged_integers(layer)
    assert found is not None
    return with_halves(found).dense()


@torch.no_grad()
def _nearest(layer: Adapter, to: Mapping[str, Any]) -> Tensor:
    """Merged to bf16, then the nearest integers."""
    format = make_format(IntConfig.model_validate({"format": f"int{to['bits']}", "group_size": 32}))
    return format.dequantize(format.quantize(layer.merged_weight().bfloat16()), torch.float32)


@torch.no_grad()
def _unmerged(layer: Adapter, to: Mapping[str, Any]) -> Tensor:
    """Base and update added up in float32."""
    return layer.merged_weight().float()


WAYS: dict[str, Callable[[Adapter, Mapping[str, Any]], Tensor]] = {
    "exact": _exact,
    "unmerged": _unmerged,
    "nearest": _nearest,
}


def _put(base: Base, path: str, module: FrozenLinear) -> None:
    parent, _, name = path.rpartition(".")
    setattr(base.model.get_submodule(parent), name, module)


def _by_gptq(to: Mapping[str, Any], recipe: Recipe, base: Base, adapters: Adapters, data: Dataset) -> Losses:
    """Through a merged checkpoint, which is rounded while its own activations pass through it."""
    values = {"format": f"int{to['bits']}", "group_size": 32, "rounding": "gptq", "calibration_rows": CALIBRATION_ROWS}
    with tempfile.TemporaryDirectory(prefix="topcoat-") as folder:
        merged = Path(folder) / "merged"
        merged.mkdir()
        write_model(base, adapters, merged)
        settings = ModelSettings(path=str(merged), quantization=IntConfig.model_validate(values), device="cpu")
        round_into(Path(folder) / "rounded", settings, recipe.data, recipe.seed, Silent())
        integers = load_model(settings, Path(folder) / "rounded")
        return row_losses(integers, Adapters(integers.model, adapters.config), data)
