"""Seconds of an optimizer step on a CPU: what each part takes beyond the floor of its arithmetic or of its bytes.

    t = sum of c * floor over the parts of `Parts`, with the c of the path that computes

The floors are those of the roofline: operations over what a product reaches, bytes over what a copy reaches. The c were
fitted to the steps of bench/plan, by least squares of relative errors: those called TILES on two Xeon cores with AMX,
those called PLAIN on two EPYC cores with AVX-512. Those of the hand-written blocks in bf16 come from 42 points each
(SmolLM2-135M to shapes of 1.7B, 128 to 8,192 tokens, every policy and format); those of float32 (2 points) and of
transformers' layers (7) were set by hand. With AMX wide blocks come near their floor and thin ones do not: a processor
throttles under long products, weights are laid out for tiles once a pass, and vectors wait for memory. Without it
products take about their floor. docs/plan-accuracy.md has every point; `bench/plan/fit.py` fits the first anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

PACKING_S = 1e-9
"""What one weight costs when a pass lays it out for tiles, to which the coefficients refer."""
SPREAD = 0.15
"""Below and above the estimate: what is told is a span."""


@dataclass(frozen=True)
class Parts:
    """Floors of one optimizer step, in seconds."""

    linears: float
    """Products with weights, those computed again included."""
    attention: float
    adapters: float
    elementwise: float
    """Bytes of norms, gates and positions."""
    weights: float
    """PACKING_S for each weight and micro batch."""
    unpacking4: float
    """The same where the weights are of 4 bits or fewer; 0 elsewhere."""
    unpacking8: float
    """The same for weights of more bits that are dequantized."""
    calls: float
    """Small operations."""
    optimizer: float


TILES = {
    "linears": 1.2,
    "attention": 1.75,
    "adapters": 5.7,
    "elementwise": 2.6,
    "weights": 0.48,
    "unpacking4": 0.13,
    "unpacking8": 2.4,
    "calls": 1.4,
    "optimizer": 0.0,
}
"""The hand-written blocks in 16 bits, multiplying in code of ours on a processor with AMX."""
TILES_FP32 = dict.fromkeys(TILES, 0.0) | {"linears": 2.07, "attention": 2.07, "adapters": 2.0, "optimizer": 1.0}
TILES_LAYERS = TILES | {"adapters": 40.0, "elementwise": 5.9, "calls": 2.2, "weights": 0.0, "optimizer": 6.5}
"""Transformers' layers in 16 bits, under autocast."""
TILES_LAYERS_FP32 = TILES_LAYERS | {"elementwise": 4.2}
PLAIN = {
    "linears": 1.0,
    "attention": 1.8,
    "adapters": 2.5,
    "elementwise": 3.7,
    "weights": 0.0,
    "unpacking4": 0.25,
    "unpacking8": 0.0,
    "calls": 1.2,
    "optimizer": 6.2,
}
"""The hand-written blocks in 16 bits, multiplying through oneDNN: weights are laid out inside its products."""
PLAIN_FP32 = PLAIN | {"linears": 1.15, "attention": 1.15}
PLAIN_LAYERS = PLAIN | {"adapters": 8.4, "elementwise": 1.8, "calls": 1.1}
PLAIN_LAYERS_FP32 = PLAIN_LAYERS | {"linears": 1.22}
PAGED = 1.6
"""An optimizer whose moments lie in a file, against one in memory."""
PATHS = {
    (True, True, True): TILES,
    (True, True, False): TILES_FP32,
    (True, False, True): TILES_LAYERS,
    (True, False, False): TILES_LAYERS_FP32,
    (False, True, True): PLAIN,
    (False, True, False): PLAIN_FP32,
    (False, False, True): PLAIN_LAYERS,
    (False, False, False): PLAIN_LAYERS_FP32,
}
"""(AMX, hand-written blocks, 16 bits) -> the factors."""


def cpu_seconds(parts: Parts, element_bytes: int, *, blocks: bool, tiles: bool) -> tuple[float, float]:
    """A span around the estimate."""
    factors: Mapping[str, float] = PATHS[tiles, blocks, element_bytes == 2]
    seconds = sum(factors[name] * floor for name, floor in asdict(parts).items())
    return seconds * (1 - SPREAD), seconds * (1 + SPREAD)


def repeated(policy: str) -> float:
    """How often a layer's vectors and weights are passed under a recompute policy, against once there and back."""
    return {"block": 1.5, "offload": 1.5, "qkv": 1.25}.get(policy, 1.0)
