"""What probes found on this device: by how much a run's peak differed from its plan. Kept, and added to later plans.

    residual = measured peak - predicted peak, in bytes; a plan adds the median of the newest nine

Bytes, not a share: the tensors of a plan are counted, and what it can miss is what the libraries of this machine take
beside them, which is about the same for a small model and for a large one.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from topcoat.errors import TopcoatError
from topcoat.files import make_folder, write_file
from topcoat.json_files import read_json_object

NEWEST = 9
VERSION = 1


@dataclass(frozen=True)
class Residual:
    """One probe."""

    model: str
    predicted_bytes: int
    measured_bytes: int
    micro_step_seconds: float
    micro_step_tokens: int

    @property
    def bytes(self) -> int:
        """What the plan missed; negative where it was too high."""
        return self.measured_bytes - self.predicted_bytes

    @property
    def share(self) -> float:
        """The same as a share of what was measured."""
        return self.bytes / self.measured_bytes


def read_residuals(device: str, cache: Path) -> list[Residual]:
    """The newest probes on `device`, the oldest first; none where the file is not there or of no use."""
    file = _file(device, cache)
    if not file.is_file():
        return []
    try:
        found = read_json_object(file, "")
        return [Residual(**row) for row in found["probes"]] if found["version"] == VERSION else []
    except (TopcoatError, KeyError, TypeError):
        return []


def keep_residual(residual: Residual, device: str, cache: Path) -> bool:
    """Add one probe to those of `device`; False where the cache folder cannot be written."""
    rows = [asdict(row) for row in [*read_residuals(device, cache), residual][-NEWEST:]]
    file = _file(device, cache)
    try:
        make_folder(file.parent)
        write_file(file, json.dumps({"version": VERSION, "probes": rows}, indent=1) + "\n")
    except (OSError, TopcoatError):
        return False
    return True


def residual_bytes(residuals: list[Residual]) -> int:
    """What a plan adds: the median of the newest; 0 without any."""
    return round(statistics.median(row.bytes for row in residuals)) if residuals else 0


def says(residuals: list[Residual]) -> str:
    """Where the line of a bill is from."""
    many = f"{len(residuals)} probes" if len(residuals) > 1 else "one probe"
    return f"median of {many} on this device"


def _file(device: str, cache: Path) -> Path:
    return cache / "calibration" / f"residual-{re.sub('[^a-z0-9-]+', '-', device.lower())}.json"
