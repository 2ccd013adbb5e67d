"""A run's own integers: the folder of what calibration rounded, written once and read by all that follows.

model.safetensors   the rounded linears in Topcoat's layout (model/topcoat_tensors.py), in shards where large
calibration.json    how many rows and tokens, and the error of every linear's outputs, beside nearest rounding's
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from topcoat.exporting.calibrating import Rounded
from topcoat.exporting.shards import write_shards
from topcoat.files import publish_directory, write_file
from topcoat.model.topcoat_tensors import linear_tensors

FACTS = "calibration.json"


def write_rounded(folder: Path, found: Iterable[Rounded], facts: dict[str, Any]) -> dict[str, Any]:
    """Write all of `found` to the directory `folder` (not there yet), whole or not at all; returns calibration.json.

    Raises TopcoatError: `folder` exists, or the disk did not take it.
    """
    began, errors = time.perf_counter(), dict[str, dict[str, float]]()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for linear in found:
            errors[linear.path] = {"error": linear.error, "nearest_error": linear.nearest_error}
            yield from linear_tensors(linear.path, linear.weight, linear.config)

    with publish_directory(folder) as temporary:
        write_shards(tensors(), temporary)
        told = facts | {"seconds": round(time.perf_counter() - began, 1)} | summary(errors)
        write_file(temporary / FACTS, json.dumps(told, indent=2) + "\n")
    return told


def summary(errors: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The errors of all linears, and their means."""
    count = max(1, len(errors))
    means = {f"mean_{key}": sum(e[key] for e in errors.values()) / count for key in ("error", "nearest_error")}
    return means | {"linears": errors}
