"""A memory bill: terms with their bytes and what they are computed from, their sum, and whether it fits. No torch here;
`sizes.py` makes bills from counts, `loaded.py` counts a loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from topcoat.errors import Refused
from topcoat.units import show_bytes

GROUPS: dict[str, tuple[str, ...]] = {
    "frozen weights": ("frozen weights", "quantization constants", "embeddings and head", "norms and biases"),
    "what trains": (
        *("trained parameters", "gradients", "optimizer moments", "adapter's frozen matrices", "importance scores"),
        "compute copies",
    ),
    "activations": ("saved activations", "backward working set", "loss", "dequantization buffer", "CUDA graphs"),
    "process": (
        *("runtime", "tokenizer and kernels", "compiled products", "difference measured", "matrix workspace"),
        "allocator's rounding",
    ),
}
"""What one part of a stacked picture stands for."""


def group_bytes(lines: Mapping[str, int]) -> dict[str, int]:
    """Group -> bytes, of a bill's lines by name; lines of no group come last, as others."""
    sums = {group: sum(lines.get(name, 0) for name in names) for group, names in GROUPS.items()}
    others = sum(lines.values()) - sum(sums.values())
    return sums | ({"others": others} if others else {})


@dataclass(frozen=True)
class Line:
    """One term: its name, its bytes, and what they are computed from."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Bill:
    """All terms; the peak of a training step is their sum."""

    lines: tuple[Line, ...]

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of a training step."""
        return sum(line.bytes for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        """plan.json before anything is measured."""
        rows = [{"name": line.name, "bytes": line.bytes, "note": line.note} for line in self.lines]
        return {"lines": rows, "peak_bytes": self.peak_bytes}

    def require_fit(self, available_bytes: int | None) -> None:
        """Raises Refused when the predicted peak is above what the machine has free."""
        if available_bytes is None or self.peak_bytes <= available_bytes:
            return
        largest = max(self.lines, key=lambda line: line.bytes)
        raise Refused(
            f"the run needs about {show_bytes(self.peak_bytes)} of memory and {show_bytes(available_bytes)} are free; "
            f"most of it is {largest.name} ({show_bytes(largest.bytes)})",
            where="train.micro_batch_tokens, model.quantization",
            fix="lower train.micro_batch_tokens or data.max_length, set train.recompute: block, "
            "or store the weights as model.quantization: {format: nf4}",
        )
