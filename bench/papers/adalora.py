"""12.6: AdaLoRA beside LoRA at an equal budget of ranks. AdaLoRA's Table 1."""

from __future__ import annotations

import statistics
from typing import Any

from bench.papers.data import Cut
from bench.papers.intervals import not_above, over_seeds, within
from bench.papers.lab import Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table
from bench.papers.sweeps import factor_grid

DATA, LONGER = Cut("banking77", 480, 200), Cut("banking77", 1440, 200)
TARGET, INIT = 8, 12


def _adalora(scale: int) -> dict[str, Any]:
    return {"method": "adalora", "init_r": INIT, "target_r": TARGET, "lora_alpha": float(scale * INIT)}


LORA, ADA, STRONG = "LoRA r 8", "AdaLoRA 12 to 8", "AdaLoRA 12 to 8, scale 16"
ARMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    LORA: ({"method": "lora", "r": TARGET, "lora_alpha": 2.0 * TARGET}, factor_grid(1e-3, 5)),
    ADA: (_adalora(2), factor_grid(8e-3, 4)),
    STRONG: (_adalora(16), factor_grid(2e-3, 4)),
}
"""Each with a grid of rates of its own. The first two have the scale 2; the third asks whether it is the scale."""
SEEDS = 5


def run(lab: Lab) -> Outcome:
    """A sweep each with seed 0, then all seeds at the best rate."""
    rows, scores, losses, ranks = [], {}, {}, []
    asked: dict[str, Any] = {"data": DATA, "answers": DATA.validation}
    sweeps = {name: lab.sweep(name, adapter, grid, **asked) for name, (adapter, grid) in ARMS.items()}
    found = {name: lab.seeds_of(name, ARMS[name][0], sweep.best, SEEDS, **asked) for name, sweep in sweeps.items()}
    for name, sweep in sweeps.items():
        arms = found[name]
        scores[name], losses[name] = ([arm[key] for arm in arms] for key in ("exact_match", "loss"))
        ranks += [arm["ranks"] / len(arm["layers"]) for arm in arms if "ranks" in arm]
        score, loss = (statistics.fmean(values[name]) for values in (scores, losses))
        rows.append([name, sweep.say(), round(loss, 4), f"{score:.1%}"])
    lines = [
        within(f"exactly {TARGET} ranks a linear are left, in every run", ranks, TARGET, TARGET),
        not_above("AdaLoRA's exact match not below LoRA's", over_seeds(scores[LORA], scores[ADA])),
    ]
    figures = {
        f"{what} {name} - {LORA}": over_seeds(values[name], values[LORA]).say()
        for name in (ADA, STRONG)
        for what, values in (("exact match", scores), ("loss", losses))
    } | _longer(lab, {name: sweep.best for name, sweep in sweeps.items()}, asked["answers"])
    header = ["method", "best rate", "mean loss", "exact match"]
    bars = {name: statistics.fmean(values) for name, values in scores.items()}
    return Outcome(
        lines,
        Table(header, rows),
        Chart(f"SmolLM2-135M, exact match on {DATA.validation} of banking77", bars=bars),
        figures,
    )


def _longer(lab: Lab, best: dict[str, float], answers: int) -> dict[str, str]:
    """The same on three times the rows, seed 0, at the best rate and at half of it: the better of the two."""
    found = {
        name: [lab.train(f"longer, {name}", ARMS[name][0], rate, data=LONGER, answers=answers) for rate in (r / 2, r)]
        for name, r in best.items()
    }
    better = {name: min(arms, key=lambda arm: arm["loss"]) for name, arms in found.items()}
    return {
        f"{LONGER.train} rows, {name}": f"exact match {arm['exact_match']:.1%}, loss {arm['loss']:.4f}"
        for name, arm in better.items()
    }


PAPER = {"full": 88.09, "LoRA r 8": 88.34, "AdaLoRA 1.27M": 89.31, "LoRA r 2": 88.15, "AdaLoRA .32M": 88.86}

EXPERIMENT = Experiment(
    name="adalora",
    section="12.6",
    title="AdaLoRA beside LoRA at an equal budget",
    source="Zhang et al. 2023 (AdaLoRA), arXiv:2303.10512, Table 1: mean of GLUE, DeBERTa-v3-base",
    protocol=f"SmolLM2-135M-Instruct, {DATA.say()} by exact match, one epoch ({DATA.train // 16} steps), batch 16, "
    f"cosine, all linears, scale 2; rates {ARMS[LORA][1]} for LoRA and {ARMS[ADA][1]} for AdaLoRA "
    f"with seed 0, then {SEEDS} seeds at the best. AdaLoRA takes ranks away from a tenth of the run to three fifths. "
    f"Without a pass line: AdaLoRA at eight times the scale with rates {ARMS[STRONG][1]}, and all three on "
    f"{LONGER.train} rows ({LONGER.train // 16} steps) with seed 0. Intervals are of paired differences over seeds.",
    paper=Table(["method", "GLUE"], [[name, value] for name, value in PAPER.items()]),
    paper_chart=Chart("AdaLoRA, Table 1: mean of GLUE", bars=PAPER),
    run=run,
    notes="AdaLoRA's budget is met to the rank. That it learns less at LoRA's scale is a matter of that scale: its "
    "update is a product of three factors, of which E begins at zero, and at a rate at which E grows fast enough "
    "the other two begin to diverge (0.064 does). At eight times the scale and a quarter of the rate three "
    "quarters of the gap in loss are gone, and what is left is within what seeds do; of the exact match half is "
    "left. With seed 0 it is none of the other suspects: without the orthogonality term the loss is 0.855 and "
    "with 9 ranks to begin with 1.011, where it is 0.894 with both as in the paper; larger first P and Q "
    "(deviations of 0.06 and 0.1, each at its best of the rates tried) give 0.982 and 1.008. Three times the "
    "steps leave 0.07 nats of 0.11, and at the larger scale 0.03 of 0.04. Those of the other suspects were tried "
    "by hand, one run each. PEFT's own comparison finds AdaLoRA behind as well (.373 against .474 on GSM8K); the "
    "paper's tables are of thousands of steps, and of scores that LoRA and AdaLoRA nearly share.",
    minutes=25,
)
