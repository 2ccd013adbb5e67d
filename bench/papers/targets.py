"""12.3: which linears to adapt, at equal parameters. LoRA's Table 5, QLoRA's all linears, "LoRA Without Regret"."""

from __future__ import annotations

import statistics
from typing import Any

from bench.papers.data import Cut
from bench.papers.intervals import below, not_above, over_seeds, within
from bench.papers.lab import Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table
from bench.papers.sweeps import factor_grid

DATA = Cut("alpaca", 384, 100)
GRID = factor_grid(5e-4, 4)
SEEDS = 3
MLP, ATTENTION = ["gate_proj", "up_proj", "down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
SETS: dict[str, tuple[int, str | list[str]]] = {
    "all": (16, "all-linear"),
    "MLP": (26, MLP),
    "attention": (42, ATTENTION),
    "q and v": (85, ["q_proj", "v_proj"]),
}
"""Ranks of equal parameters on SmolLM2-135M, to within 1.2 %."""


def lora(name: str) -> dict[str, Any]:
    """LoRA with a scale of 2."""
    r, targets = SETS[name]
    return {"method": "lora", "r": r, "lora_alpha": 2.0 * r, "target_modules": targets}


def run(lab: Lab) -> Outcome:
    """A sweep for each set, then seeds at its best rate."""
    best = {name: lab.sweep(name, lora(name), GRID, data=DATA) for name in SETS}
    arms = {name: lab.seeds_of(name, lora(name), best[name].best, SEEDS, data=DATA) for name in SETS}
    losses = {name: [arm["loss"] for arm in found] for name, found in arms.items()}
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    lines = [
        within("all and MLP within 0.5 %", [means["all"] / means["MLP"] - 1], -0.005, 0.005, "{:+.2%}"),
        below("all below attention", over_seeds(losses["all"], losses["attention"])),
        below("MLP below attention", over_seeds(losses["MLP"], losses["attention"])),
        not_above("attention not above q and v", over_seeds(losses["attention"], losses["q and v"])),
    ]
    rows = [[name, SETS[name][0], arms[name][0]["trained"], best[name].say(), round(means[name], 4)] for name in SETS]
    chart = Chart("SmolLM2-135M, loss on 100 alpaca rows", bars=means)
    return Outcome(lines, Table(["linears", "rank", "parameters", "best rate", "mean loss"], rows), chart)


PAPER = {
    "q": (8, 70.4, 91.0),
    "k": (8, 70.0, 90.8),
    "v": (8, 73.0, 91.0),
    "o": (8, 73.2, 91.3),
    "q, k": (4, 71.4, 91.3),
    "q, v": (4, 73.7, 91.3),
    "q, k, v, o": (2, 73.7, 91.7),
}

EXPERIMENT = Experiment(
    name="targets",
    section="12.3",
    title="Which linears to adapt, at equal parameters",
    source="Hu et al. 2021 (LoRA), arXiv:2106.09685, Table 5: GPT-3 with 18M parameters; that attention alone is worse "
    "than the MLP is from LoRA Without Regret (r 256 on attention loses to r 128 on the MLP) and has no table",
    protocol=f"SmolLM2-135M-Instruct, {DATA.say()}, one epoch, batch 16, cosine; a rate for each set of linears from "
    f"{GRID[0]:g} to {GRID[-1]:g} in factors of 2 with seed 0, then {SEEDS} seeds at it. Scale 2. "
    "Intervals are of paired differences over seeds.",
    paper=Table(["linears", "rank", "WikiSQL", "MNLI"], [[name, *row] for name, row in PAPER.items()]),
    paper_chart=Chart("LoRA, Table 5: GPT-3, WikiSQL accuracy", bars={name: row[1] for name, row in PAPER.items()}),
    run=run,
    minutes=18,
)
