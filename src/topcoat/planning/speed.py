"""Time of a micro batch and of a run, from the roofline of its device.

    operations = T (4 N + 2 rho + 4 p E) + L dq sum(s^2) (2 + 5 + 2 again) + 6 P_token T
    bytes      = L T (24 D + 8 (dq + dkv) + 16 F) * e / 2 + passes * (stored + e) N + 28 P / micro batches

N linears' weights that a token passes, rho those computed again, p the share of rows with a label, E the head's
weights, s the lengths of the documents, P_token the adapters' numbers. Full fine-tuning has 6 N and 6 p E. Arithmetic
and memory partly overlap, so the time is between the longer of the two and their sum; what calls cost comes on top,
which small models notice. A CPU is further from its floors, by factors that were measured (`cpu_speed.py`). Engine
study, section 3.1.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from topcoat.adapters.settings import FullConfig
from topcoat.errors import TopcoatError
from topcoat.kernels.recompute import Policy
from topcoat.planning.counts import Counts
from topcoat.planning.cpu_speed import PACKING_S, PAGED, Parts, cpu_seconds, repeated
from topcoat.planning.request import Request

CALLS = {True: 1000, False: 1900}
"""Small operations that a layer's forward and backward cost, by whether the hand-written blocks compute: the processor
time of a layer of 64 tokens and width 64, in bf16 and fp32, over that of one addition to eight numbers (torch 2.13)."""
LABELLED = 0.5
"""p, the share of positions with a label, where the data have not been read: half of a chat row is answer."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a step and of the run, as a lower and an upper bound of the roofline."""

    step_seconds: tuple[float, float]
    run_seconds: tuple[float, float] | None
    """None where the number of steps is not known."""
    tokens_per_second: tuple[float, float]
    flops: float
    """Operations of one step."""
    bytes: float
    """Bytes that one step moves."""


@dataclass(frozen=True)
class Price:
    """Money an hour, or money a kilowatt-hour."""

    amount: float
    per: str
    currency: str

    def of(self, seconds: float, watts: int) -> float:
        """What `seconds` on a device of so many watts cost."""
        hours = seconds / 3600
        return self.amount * (hours if self.per == "h" else hours * watts / 1000)


OPTIMIZER_BYTES = 28
"""Of one trained number: AdamW reads it, its gradient and two moments, and writes it and the moments, 4 bytes each."""
CHECKPOINTED = 1.5
"""Passes over a layer's weights where autograd computes it again, in parts of those without: forward, forward and
backward in place of forward and backward."""

_PRICE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([^\d\s/]*)\s*/\s*(h|kwh)\s*", re.IGNORECASE)


def parse_price(text: str) -> Price:
    """ "2.49EUR/h" or "0.30/kWh". Raises TopcoatError for anything else."""
    found = _PRICE.fullmatch(str(text))
    if found is None:
        fix = "write an amount an hour or a kilowatt-hour, such as 2.49EUR/h or 0.30EUR/kWh"
        raise TopcoatError(f"{text!r} is no price", "--price", fix)
    return Price(float(found[1]), "h" if found[3].lower() == "h" else "kWh", found[2])


def speed_of(request: Request, counts: Counts, policies: tuple[Policy, ...], recomputed: bool) -> Speed:
    """The roofline of `request`, whose layers compute again what `policies` (or `recomputed`) say."""
    a, e, device = request.architecture, request.element_bytes, request.device
    total = request.step_tokens
    positions = total * request.positions_a_token
    micros = max(1, math.ceil(positions / request.tokens))
    flops, moved = _operations(request, policies, recomputed), _traffic(request, counts)
    flops_step = positions * flops
    passes = 2 if not recomputed and all(policy in ("none", "mlp") for policy in policies) else 3
    stored = counts.codes_bytes + counts.constant_bytes
    weights = a.linear_numbers * e if not counts.quantized else stored + a.linear_numbers * e
    optimizer = OPTIMIZER_BYTES * counts.trained_numbers
    moved_step = (
        positions * moved + micros * passes * (weights + (4 * a.linear_numbers if counts.full else 0)) + optimizer
    )
    if request.micro_step is not None:  # measured: the same micro-step as often as the tokens need it
        seconds, tokens = request.micro_step
        bounds = (total / tokens * seconds + optimizer / device.bandwidth,) * 2
    elif device.kind == "cpu":
        parts = parts_of(request, counts, policies, recomputed)
        bounds = cpu_seconds(parts, e, blocks=counts.blocks is not None, tiles=device.tiles)
    else:
        arithmetic, memory = flops_step / device.flops(e), moved_step / device.bandwidth
        calls = micros * a.layers * CALLS[counts.blocks is not None] * device.call_seconds
        bounds = (max(arithmetic, memory) + calls, arithmetic + memory + calls)
    steps = request.steps
    return Speed(
        step_seconds=bounds,
        run_seconds=None if steps is None else (steps * bounds[0], steps * bounds[1]),
        tokens_per_second=(total / bounds[1], total / bounds[0]),
        flops=flops_step,
        bytes=moved_step,
    )


def parts_of(request: Request, counts: Counts, policies: tuple[Policy, ...], recomputed: bool) -> Parts:
    """The floors of an optimizer step on a CPU."""
    a, e, device = request.architecture, request.element_bytes, request.device
    positions = request.step_tokens * request.positions_a_token
    micros = max(1, math.ceil(positions / request.tokens))
    attention = _attention(request, policies, recomputed)
    again = CHECKPOINTED if recomputed else sum(map(repeated, policies)) / len(policies) if policies else 1.0
    weights = micros * again * PACKING_S * a.linear_numbers
    wide = counts.quantized and counts.codes_bytes >= a.linear_numbers  # a byte a weight, or more
    return Parts(
        linears=positions * (_operations(request, policies, recomputed) - attention) / device.flops(e),
        attention=positions * attention / device.flops(e),
        adapters=0.0 if counts.full else 6 * counts.trained_numbers * positions / device.flops(e),
        elementwise=again * positions * _traffic(request, counts) / device.bandwidth,
        weights=weights,
        unpacking4=weights if counts.quantized and not wide else 0.0,
        unpacking8=weights if wide else 0.0,
        calls=micros * again * a.layers * CALLS[counts.blocks is not None] * device.call_seconds,
        optimizer=OPTIMIZER_BYTES
        * counts.trained_numbers
        / device.bandwidth
        * (PAGED if "paged" in request.train.optimizer else 1),
    )


def _attention(request: Request, policies: tuple[Policy, ...], recomputed: bool) -> float:
    """Those of one token between tokens."""
    a = request.architecture
    again = a.layers if recomputed else sum(policy in ("block", "offload") for policy in policies)
    return a.block_sizes.query * request.row_tokens * (7 * a.layers + 2 * again)


def _operations(request: Request, policies: tuple[Policy, ...], recomputed: bool) -> float:
    """Floating point operations of one token, forward and backward."""
    a = request.architecture
    full = isinstance(request.adapter, FullConfig)
    sizes = a.block_sizes
    again = sum(sizes.recomputed(policy) for policy in policies) if policies else 0
    if recomputed:
        again = a.active_linear_numbers
    linears = (6 if full else 4) * a.active_linear_numbers + 2 * again
    head = (6 if full else 4) * (request.labelled or LABELLED) * a.vocab * a.hidden
    return linears + head + _attention(request, policies, recomputed)


def _traffic(request: Request, counts: Counts) -> float:
    """Bytes that one token moves outside the products."""
    a, half = request.architecture, request.element_bytes / 2
    sizes = a.block_sizes
    elementwise = 24 * sizes.hidden + 8 * (sizes.query + sizes.key_value) + 16 * sizes.mlp
    if sizes.head_norms:  # read and written there, read twice and written back
        elementwise += 12 * (sizes.query + sizes.key_value)
    if sizes.post_norms:
        elementwise += 12 * sizes.hidden
    plain = 1 if counts.blocks is not None else 3  # separate operations read and write where the blocks do both at once
    return a.layers * elementwise * half * plain
