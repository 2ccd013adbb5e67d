"""What is trained: models, rows and their sizes, the contenders of each, and the figures to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Workload:
    """One optimizer step of some documents, over and over with other documents of the same size."""

    name: str
    title: str
    model: str
    """A key of `prepare.MODELS`."""
    text: Literal["prose", "chat", "random"]
    """Whole rows of running text, all labelled; answers of chat rows, labelled in part; random tokens, all labelled."""
    rows: int
    """Rows a step, of `row_tokens` each: one document each, or with "chat" as many as fit."""
    row_tokens: int
    contenders: tuple[str, ...]
    stored: Literal["bf16", "nf4"] = "bf16"
    extra: tuple[str, ...] = ()
    """Contenders that are measured with --all only: known to be behind."""
    against: tuple[str, ...] = ()
    """The peers of whom the best is what ours is compared with; all of them where none is named."""
    least_speed: float | None = None
    """Times the tokens a second of the best peer that are to be reached."""
    most_memory: float | None = None
    """Share of its peak memory that is not to be exceeded."""
    least_share: float | None = None
    """Share of the matrix-product ceiling that is to be reached."""
    least_versus: tuple[tuple[str, float], ...] = ()
    """Times the tokens a second of every peer whose name begins so."""
    most_bytes: tuple[str, int] | None = None
    """One of ours, and the bytes that it is not to exceed."""
    steps: int = 8
    """Different steps before the documents come again."""

    @property
    def tokens(self) -> int:
        """Most tokens of a step."""
        return self.rows * self.row_tokens


OURS = ("topcoat-none", "topcoat-block", "topcoat-auto")

_CPU = (
    Workload(
        "135m-4x512",
        "SmolLM2-135M, LoRA bf16, 4 x 512 tokens, all labelled",
        *("smollm2-135m", "prose", 4, 512),
        contenders=("peft-autocast", "peft-bf16", "peft-bf16-ckpt", "trl", "peft-fp32", "peft-fp32-ckpt", *OURS),
        extra=("trl-ckpt", "peft-autocast-ckpt"),
        least_speed=3.3,
        most_memory=0.5,
        least_share=0.6,
    ),
    Workload(
        "135m-alpaca",
        "SmolLM2-135M, LoRA bf16, alpaca rows as chat, packed into 4 x 512",
        *("smollm2-135m", "chat", 4, 512),
        contenders=("trl-packed", "trl-packed-ckpt", "trl", "peft-autocast-packed", "peft-bf16-packed", *OURS),
        extra=("peft-bf16", "trl-ckpt"),
        against=("trl-packed", "trl-packed-ckpt", "trl", "trl-ckpt"),
        least_speed=5.0,
        most_memory=0.5,
    ),
    Workload(
        "135m-alpaca-nf4",
        "SmolLM2-135M, QLoRA NF4 with double quantization, the same rows",
        *("smollm2-135m", "chat", 4, 512),
        contenders=("peft-autocast-packed", "peft-autocast-packed-ckpt", "trl-packed", *OURS),
        stored="nf4",
        extra=("peft-autocast", "peft-autocast-ckpt", "trl-packed-ckpt"),
        least_speed=5.0,
        most_memory=0.4,
    ),
    Workload(
        "135m-1x4096",
        "SmolLM2-135M, LoRA bf16, one document of 4,096 tokens",
        *("smollm2-135m", "prose", 1, 4096),
        contenders=("peft-bf16", "peft-autocast", "peft-bf16-ckpt", "trl", *OURS),
        extra=("trl-ckpt",),
        least_speed=3.0,
        most_memory=0.4,
        steps=4,
    ),
    Workload(
        "1b-2x512",
        "Llama-3.2-1B shape, random weights, LoRA bf16, 2 x 512 tokens",
        *("llama-1b", "random", 2, 512),
        contenders=("peft-bf16", "peft-autocast", "peft-bf16-ckpt", "trl", "topcoat-none", "topcoat-block"),
        extra=("trl-ckpt", "topcoat-auto"),  # three of ours and a peer would fill 24 GB
        least_speed=2.0,
        most_memory=0.6,
        least_share=0.6,
        steps=4,
    ),
)

TINY = Workload(
    "tiny",
    "two random blocks, 4 x 64 tokens: shows that the harness works, and no speed",
    *("tiny", "random", 4, 64),
    contenders=("peft-fp32", "topcoat-none-fp32"),
    extra=("peft-bf16", "peft-autocast", "peft-bf16-ckpt", "trl", "trl-packed", "topcoat-none", "topcoat-block"),
)

OURS_GPU = (*OURS, "topcoat-offload", "topcoat-none-graphs")
PEERS_GPU = ("peft-bf16", "peft-bf16-ckpt", "trl-packed", "trl-packed-ckpt", "unsloth-default", "unsloth-no-ckpt")
QLORA_GPU = tuple(name.replace("peft-bf16", "peft-autocast") for name in PEERS_GPU)


def _gpu(model: str, stored: Literal["bf16", "nf4"], tokens: int, **figures: Any) -> Workload:
    peers = PEERS_GPU if stored == "bf16" else QLORA_GPU
    title = f"Llama {model.removeprefix('llama-').upper()} shape, random weights, {stored}, {tokens:,} tokens packed"
    rows = tokens // 512
    name = f"{model.removeprefix('llama-')}-{stored}-{tokens}"
    return Workload(*(name, title, model, "random", rows, 512), (*peers, *OURS_GPU), stored=stored, steps=4, **figures)


_GPU = (
    *(_gpu("llama-8b", "nf4", tokens) for tokens in (2048, 8192)),
    _gpu(
        *("llama-8b", "nf4", 4096),
        least_versus=(("unsloth", 1.35), ("peft", 2.0), ("trl", 2.0)),
        most_bytes=("topcoat-offload", 6 * 2**30),
        least_share=0.5,
    ),
    _gpu("llama-8b", "bf16", 4096),
    *(_gpu("llama-1b", stored, tokens) for stored in ("bf16", "nf4") for tokens in (2048, 8192)),
)

SUITES: dict[str, dict[str, Workload]] = {
    "cpu": {workload.name: workload for workload in (*_CPU, TINY)},
    "gpu": {workload.name: workload for workload in (*_GPU, TINY)},
}
DEFAULTS = {suite: tuple(name for name in found if name != "tiny") for suite, found in SUITES.items()}
