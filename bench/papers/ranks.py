"""12.2: rank hardly matters once every linear is adapted. LoRA's Table 18."""

from __future__ import annotations

import statistics

from bench.papers.intervals import below, over_seeds, within
from bench.papers.lab import Lab
from bench.papers.learning_rate import ALPHA, DATA, LORA_GRID, lora, settings, sweep_rank
from bench.papers.protocol import Chart, Experiment, Outcome, Table

RANKS = (1, 4, 16, 64)
SEEDS = 3


def run(lab: Lab) -> Outcome:
    """The sweeps of 12.10 and one of rank 1, then seeds at each rank's best rate."""
    sweeps = {r: sweep_rank(lab, r) for r in RANKS}
    arms = {
        r: lab.seeds_of(f"LoRA r {r}", lora(r), sweep.best, SEEDS, data=DATA, settings=settings())
        for r, sweep in sweeps.items()
    }
    losses = {r: [arm["loss"] for arm in found] for r, found in arms.items()}
    means = {r: statistics.fmean(values) for r, values in losses.items()}
    higher = [r for r in RANKS if r >= 4]
    spread = max(means[r] for r in higher) / min(means[r] for r in higher) - 1
    optima = [sweeps[r].optimum for r in higher]
    lines = [
        within("best losses of ranks 4, 16 and 64 within 1 %", [spread], 0, 0.01, "{:.2%}"),
        *(below(f"rank {r} below rank 1", over_seeds(losses[r], losses[1])) for r in higher),
        within("the best rate moves by less than 2 from rank 4 to 64", [max(optima) / min(optima)], 1, 2),
    ]
    rows = [[r, sweeps[r].say(), f"{sweeps[r].optimum:.3g}", round(means[r], 4)] for r in RANKS]
    points = [(float(r), means[r]) for r in RANKS]
    chart = Chart("SmolLM2-135M, loss on 100 alpaca rows", lines={"validation loss": points}, x="rank", log=True)
    return Outcome(lines, Table(["rank", "best rate of the grid", "refined", "mean loss"], rows), chart)


PAPER_LOSS = {
    1: 1.23,
    2: 1.21,
    4: 1.18,
    8: 1.17,
    16: 1.16,
    32: 1.16,
    64: 1.16,
    128: 1.16,
    256: 1.16,
    512: 1.16,
    1024: 1.17,
}
PAPER_BLEU = (68.72, 69.17, 70.38, 69.57, 69.61, 69.33, 69.24, 68.73, 68.92, 68.78, 69.37)

EXPERIMENT = Experiment(
    name="ranks",
    section="12.2",
    title="Rank hardly matters once every linear is adapted",
    source="Hu et al. 2021 (LoRA), arXiv:2106.09685, Table 18: GPT-2 Medium on E2E NLG",
    protocol=f"SmolLM2-135M-Instruct, {DATA.say()}, one epoch at a constant rate, batch 8, all linears, alpha "
    f"{ALPHA:g} at every rank; rates {LORA_GRID[0]:g} to {LORA_GRID[-1]:g} in factors of 2 with seed 0 (shared with "
    f"12.10), then {SEEDS} seeds at each rank's best rate. Intervals are of paired differences over seeds.",
    paper=Table(
        ["rank", "validation loss", "BLEU"],
        [[r, loss, bleu] for (r, loss), bleu in zip(PAPER_LOSS.items(), PAPER_BLEU, strict=True)],
    ),
    paper_chart=Chart(
        "LoRA, Table 18: GPT-2 Medium, loss on E2E",
        lines={"validation loss": [(float(r), loss) for r, loss in PAPER_LOSS.items()]},
        x="rank",
        log=True,
    ),
    run=run,
    minutes=10,
    notes="Rank 1 is the worst of the four on average, as in the paper, but by less than seeds differ. Its 305,280 "
    "parameters are about eight times the target tokens of these 512 rows: nothing here is too much for it to hold. "
    "The paper's rank 1 adapts the queries and values alone, and sees 42,000 rows five times.",
)
