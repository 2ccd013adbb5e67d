"""12.10: LoRA's best learning rate beside full tuning's, over ranks and batch sizes ("LoRA Without Regret")."""

from __future__ import annotations

from typing import Any

from bench.papers.data import Cut
from bench.papers.intervals import Interval, Summed, mean_loss, not_above, over_rows, within
from bench.papers.lab import Found, Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table
from bench.papers.sweeps import Sweep, factor_grid

DATA = Cut("alpaca", 512, 100)
RANKS = (4, 16, 64)
ALPHA = 32.0
LORA_GRID = factor_grid(2.5e-4, 6)
FULL_GRID = factor_grid(1.25e-5, 6)
BATCH, BATCHES = 8, (32, 128)
HIGHER = (1.0, 2.0, 4.0)
"""Larger batches try these multiples of the best rate at the smallest one."""
CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
FULL = {"method": "full"}


def lora(r: int) -> dict[str, Any]:
    """LoRA on all linears at a constant alpha, so that the update is divided by the rank."""
    return {"method": "lora", "r": r, "lora_alpha": ALPHA}


def settings(batch: int = BATCH) -> dict[str, Any]:
    """One epoch at a constant rate."""
    return {**CONSTANT, "batch_size": batch}


def sweep_rank(lab: Lab, r: int) -> Sweep:
    """LoRA of one rank over the grid, seed 0."""
    return lab.sweep(f"LoRA r {r}", lora(r), LORA_GRID, data=DATA, settings=settings())


def at_batch(lab: Lab, name: str, adapter: dict[str, Any], best: float, batch: int) -> Sweep:
    """The arms with a batch: at the best rate, and at multiples of it where the batch is larger than the sweep's."""
    factors = HIGHER[:1] if lab.quick or batch == BATCH else HIGHER
    rates = tuple(best * factor for factor in factors)
    title = name if batch == BATCH else f"{name}, batch {batch}"
    return lab.sweep(title, adapter, rates, data=DATA, settings=settings(batch))


def gap_growth(small: tuple[Found, Found], large: tuple[Found, Found]) -> Interval:
    """By how much LoRA - full shrinks from the smaller batch to the larger; each pair is (LoRA, full)."""

    def plus(one: Found, other: Found) -> Summed:
        return [(a + b, n) for (a, n), (b, _) in zip(one["losses"], other["losses"], strict=True)]

    return over_rows(plus(small[0], large[1]), plus(small[1], large[0]))


def run(lab: Lab) -> Outcome:
    """Sweeps of three ranks and of full tuning; then batches."""
    sweeps = {f"LoRA r {r}": sweep_rank(lab, r) for r in RANKS}
    full = lab.sweep("full", FULL, FULL_GRID, data=DATA, settings=settings())
    ratios = {name: sweep.optimum / full.optimum for name, sweep in sweeps.items()}
    optima = [sweep.optimum for sweep in sweeps.values()]
    lines = [
        within("best LoRA rate / best full rate in 4..25, each rank (theirs 9.8)", [*ratios.values()], 4, 25),
        within("LoRA's best rate moves by less than 2 from rank 4 to 64", [max(optima) / min(optima)], 1, 2),
    ]
    ends = [name for name, sweep in {**sweeps, "full": full}.items() if not sweep.is_inside]
    pairs = {
        batch: (
            at_batch(lab, "LoRA r 16", lora(16), sweeps["LoRA r 16"].best, batch),
            at_batch(lab, "full", FULL, full.best, batch),
        )
        for batch in (BATCH, *BATCHES)
    }
    by_batch = {batch: (one.arm, other.arm) for batch, (one, other) in pairs.items()}
    grown = [gap_growth(by_batch[BATCH], by_batch[batch]) for batch in BATCHES]
    lines.append(not_above(f"the gap LoRA - full does not shrink from batch {BATCH} to {BATCHES}", *grown))
    gaps = {batch: mean_loss(a["losses"]) - mean_loss(b["losses"]) for batch, (a, b) in by_batch.items()}
    figures = {"ratios": ratios, "gap LoRA - full by batch, nats": gaps, "optimum at the grid's end": ends}
    return Outcome(lines, table(sweeps, full), chart(sweeps, full), figures)


def table(sweeps: dict[str, Sweep], full: Sweep) -> Table:
    """Best rates and losses."""
    rows: list[list[Any]] = []
    for name, sweep in {**sweeps, "full": full}.items():
        rows.append(
            [name, sweep.say(), f"{sweep.optimum:.3g}", round(sweep.loss, 4), f"{sweep.optimum / full.optimum:.1f}"]
        )
    return Table(["what trains", "best rate of the grid", "refined", "validation loss", "times full's"], rows)


def chart(sweeps: dict[str, Sweep], full: Sweep) -> Chart:
    """Loss over rate."""
    lines = {name: sweep.points() for name, sweep in {**sweeps, "full": full}.items()}
    return Chart("SmolLM2-135M, loss on 100 alpaca rows", lines=lines, x="learning rate", log=True)


PAPER_RATIO = {"fitted over 14 models": 9.8, "runs below 100 steps": 15.0}

EXPERIMENT = Experiment(
    name="learning_rate",
    section="12.10",
    title="The learning rate of LoRA beside full tuning's",
    source="Schulman et al. 2025 (Thinking Machines), LoRA Without Regret: best LoRA rate / best full rate",
    protocol=f"SmolLM2-135M-Instruct, {DATA.say()}, one epoch at a constant rate, batch {BATCH} (64 steps), all "
    f"linears, alpha {ALPHA:g} at every rank; rates {LORA_GRID[0]:g} to {LORA_GRID[-1]:g} (LoRA) and {FULL_GRID[0]:g} "
    f"to {FULL_GRID[-1]:g} (full) in factors of 2, seed 0. Then batches of {BATCHES[0]} and {BATCHES[1]} (16 and 4 "
    f"steps) at 1, 2 and 4 times the best rate, the best of which counts. An optimum is refined by a parabola through "
    "its neighbours in log(rate). Intervals are over validation rows drawn again.",
    paper=Table(["runs", "ratio"], [[name, value] for name, value in PAPER_RATIO.items()]),
    paper_chart=Chart("LoRA Without Regret: best LoRA rate / best full rate", bars=PAPER_RATIO),
    run=run,
    minutes=35,
)
