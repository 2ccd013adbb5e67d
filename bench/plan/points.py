"""The grid: what is trained at each point. Every point is one recipe and one fresh process of `topcoat train`.

A name says what differs: model, method, number format, tokens of an example x examples at once, and what is unusual.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = 2
"""Optimizer steps of a point; the worst micro batch is computed once before them."""


@dataclass(frozen=True)
class Point:
    """One run: a model, examples of one length, and what its recipe sets besides."""

    model: str
    """A key of `models.MODELS`."""
    length: int
    """Tokens of every example; 0 takes the chat rows of alpaca as they are."""
    at_once: int = 1
    """Examples of a micro batch."""
    micros: int = 1
    """Micro batches of an optimizer step."""
    method: str = "lora"
    stored: str | None = None
    """Number format of the frozen linears; None is the compute dtype."""
    recompute: str = "none"
    optimizer: str = "adamw"
    dtype: str = "bf16"
    r: int = 16
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Section of the recipe -> what else it says."""

    @property
    def name(self) -> str:
        """135m lora nf4 512x4 block: what the results call it."""
        rows = f"{self.length}x{self.at_once}" + (f"x{self.micros}" if self.micros > 1 else "") if self.length else ""
        parts = [self.model, self.method, self.stored or "", rows or "alpaca"]
        parts += [self.recompute if self.recompute != "none" else "", self.dtype if self.dtype != "bf16" else ""]
        parts += [self.optimizer if self.optimizer != "adamw" else "", f"r{self.r}" if self.r != 16 else ""]
        parts += [f"{name}={value}" for section in self.more.values() for name, value in section.items()]
        return " ".join(part for part in parts if part)

    def recipe(self, model: str, rows: str, output: str) -> dict[str, Any]:
        """The recipe of this point on a model directory and a file of rows."""
        adapter: dict[str, Any] = {"method": self.method}
        if self.method in ("lora", "dora"):
            adapter |= {"r": self.r, "lora_alpha": 2.0 * self.r}
        filled = {"max_length": self.length, "overlong": "truncate", "format": "text"}
        filled |= {"loss_on": "all", "allow": ["no_stop_token", "all_trained"]}
        parts: dict[str, dict[str, Any]] = {
            "model": {"path": model, "compute_dtype": self.dtype, "device": "cpu"},
            "adapter": adapter,
            "data": {"train": rows, "validation": None, "cache": False} | (filled if self.length else {}),
            "train": {
                "max_steps": STEPS,
                "batch_size": self.at_once * self.micros if self.length else 64,  # of chat rows: micro batches are full
                "micro_batch_tokens": max(8, self.length * self.at_once) if self.length else "auto",
                "recompute": self.recompute,
                "optimizer": self.optimizer,
                "learning_rate": 1e-6,  # what is learned in two steps matters to nobody
            },
            "evaluate": {"samples": 0, "metrics": ["perplexity"]},
        }
        if self.stored:
            parts["model"]["quantization"] = {"format": self.stored}
        for section, values in self.more.items():
            parts.setdefault(section, {}).update(values)
        return {**parts, "output": output}


_CHAT = {"data": {"validation": 0.1}, "evaluate": {"samples": 2, "metrics": ["perplexity"], "max_new_tokens": 8}}

COARSE: tuple[Point, ...] = (
    Point("135m", 512),
    Point("135m", 128),
    Point("135m", 512, 4),
    Point("135m", 2048, recompute="block"),
    Point("135m", 512, 4, stored="nf4", recompute="block"),
    Point("135m", 512, 2, method="full"),
    Point("0.5b", 256, 2),
    Point("135m", 1024, dtype="fp32"),
    Point("360m", 512, 2, stored="int8"),
    Point("0.5b", 512, stored="nf4"),
    Point("1b", 256, 2, stored="nf4"),
    Point("135m", 0),
)
"""Twelve points that take minutes."""

GRID: tuple[Point, ...] = (
    *COARSE,
    # SmolLM2-135M: lengths, micro batches, policies, formats, ranks, precision, optimizers, methods
    Point("135m", 256, 8),
    Point("135m", 128, 4, 2),
    Point("135m", 1024, 2),
    Point("135m", 4096, recompute="mlp"),
    Point("135m", 4096, stored="nf4", recompute="block"),
    Point("135m", 8192, recompute="block"),
    Point("135m", 8192, stored="nf4", recompute="qkv"),
    Point("135m", 1024, recompute="mlp"),
    Point("135m", 1024, 2, recompute="qkv"),
    Point("135m", 512, 2, stored="int8"),
    Point("135m", 512, 2, stored="fp4"),
    Point("135m", 256, 2, r=64),
    Point("135m", 512, dtype="fp32", stored="nf4"),
    Point("135m", 256, method="full", recompute="block"),
    Point("135m", 256, 2, method="full", optimizer="paged_adamw"),
    Point("135m", 256, method="full", dtype="fp32"),
    Point("135m", 512, 2, method="dora"),
    Point("135m", 512, 2, method="ia3"),
    Point("135m", 512, 2, more={"adapter": {"target_modules": ["q_proj", "v_proj"]}}),
    Point("135m", 512, 2, more={"data": {"packing": False}}),
    Point("135m", 0, recompute="block"),
    Point("135m", 0, stored="nf4", more=_CHAT),
    Point("135m", 0, more={"train": {"max_steps": 20}}),  # 80 micro batches: nearly all numbers of rows have come up
    # other shapes, with random weights
    Point("360m", 256, 2),
    Point("360m", 1024, 2, recompute="block"),
    Point("360m", 2048, stored="nf4", recompute="mlp"),
    Point("360m", 128, method="full"),
    Point("0.5b", 1024, recompute="qkv"),
    Point("0.5b", 128, 4, stored="nf4", recompute="block"),
    Point("0.6b", 256, 2),
    Point("0.6b", 512, stored="nf4", recompute="mlp"),
    Point("gemma3-1b", 128, 2),
    Point("gemma3-1b", 256, stored="nf4", recompute="block"),
    Point("1b", 128, 2),
    Point("1b", 512, stored="int8", recompute="block"),
    Point("1b", 1024, stored="nf4", recompute="qkv"),
    Point("1.5b", 128, 2),
    Point("1.5b", 256, stored="nf4"),
    Point("1.7b", 128, 2, stored="nf4"),
    Point("1.7b", 256, recompute="block"),
)
"""All points."""
