"""How long a loaded run will take by the roofline of its device, for plan.json: predicted here, measured at the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from topcoat.adapters.attach import Adapters
from topcoat.data.cache import cache_folder
from topcoat.data.load import Dataset
from topcoat.errors import TopcoatError
from topcoat.model.load import Base
from topcoat.planning.architecture import architecture_of
from topcoat.planning.calibration import cpu_device
from topcoat.planning.counts import Counts
from topcoat.planning.devices import Device, device_in
from topcoat.planning.machine import machine
from topcoat.planning.request import Request
from topcoat.planning.speed import speed_of
from topcoat.recipe.schema import Recipe
from topcoat.runs.engine import Engine
from topcoat.training.memory import peak_memory_bytes


def predicted_seconds(
    recipe: Recipe, base: Base, adapters: Adapters, data: Dataset, counts: Counts, engine: Engine, steps: int
) -> dict[str, Any]:
    """Bounds of a step's and of all steps' seconds; nothing for a device or an architecture that is not known."""
    used = _device(base)
    if used is None:
        return {}
    try:
        architecture = architecture_of(base.source.config_facts(), str(base.source.path))
    except TopcoatError:
        return {}
    lengths = data.train.lengths
    request = Request(
        architecture=architecture,
        adapter=recipe.adapter,
        quantization=recipe.model.quantization,
        train=recipe.train,
        compute_dtype={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(base.compute_dtype, "fp32"),
        max_length=data.max_length,
        device=used,
        budget_bytes=0,
        rows=len(data.train),
        mean_tokens=float(lengths.mean()),
        longest_tokens=int(lengths.max()),
        labelled=data.report.target_tokens / max(1, int(lengths.sum())),
    )
    low, high = speed_of(request, counts, engine.policies, engine.checkpointing).step_seconds
    return {"step_seconds": [low, high], "run_seconds": [steps * low, steps * high]}


def _device(base: Base) -> Device | None:
    if base.device.type == "cpu":
        return cpu_device(machine(ask_torch=False), cache_folder())
    return device_in(torch.cuda.get_device_name(base.device)) if base.device.type == "cuda" else None


def measured(base: Base, metrics: Sequence[Mapping[str, Any]], seconds: float, budget: int | None) -> dict[str, Any]:
    """What stands beside the prediction at the end; `budget` is the micro batch, where memory made it smaller."""
    times = [row["tokens"] / row["tokens_per_s"] for row in metrics if row.get("tokens_per_s")]
    found: dict[str, Any] = {
        "measured_peak_bytes": peak_memory_bytes(base.device),
        "measured_step_seconds": statistics.median(times) if times else None,
        "measured_train_seconds": seconds,
    }
    return found | ({"micro_batch_tokens_after_halving": budget} if budget is not None else {})
