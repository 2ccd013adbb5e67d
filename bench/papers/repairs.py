"""12.8: formats that lose less information and starts that repair it: IR-QLoRA's ICQ, LoftQ, QPiSSA. Untuned."""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.papers.data import Cut
from bench.papers.formats import TEXTS, WINDOW, WINDOWS, difference, measured
from bench.papers.intervals import Line, below, mean_loss, not_above, over_rows, over_seeds, within
from bench.papers.lab import Found, Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table

PAIRS = {bits: (f"nf{bits}+dq", f"nf{bits}+dq icq") for bits in (4, 3, 2)}
STORES: dict[str, dict[str, object] | None] = {
    "bf16": None,
    **{
        name: {"format": stored, "double_quant": True}
        for bits, names in PAIRS.items()
        for name, stored in zip(names, (f"nf{bits}", f"nf{bits}-icq"), strict=True)
    },
}
RANK, TURNS = 16, 2
DATA, SEEDS, RATE = Cut("banking77", 256, 100), 3, 1e-3
TUNED = {
    "NF4, LoRA (QLoRA)": ("nf4", "lora"),
    "NF4-ICQ, LoRA": ("nf4-icq", "lora"),
    "NF4, IEC": ("nf4", "iec"),
    "NF4-ICQ, IEC (IR-QLoRA)": ("nf4-icq", "iec"),
}


def run(lab: Lab) -> Outcome:
    """The untuned comparisons with their pass lines, then the tuned ablation, which is open."""
    found = measured(lab, STORES)
    started = lab.do(
        "starts",
        "LoftQ and QPiSSA",
        store=STORES["nf4+dq"],
        r=RANK,
        turns=TURNS,
        texts=dict.fromkeys(TEXTS, 2 if lab.quick else WINDOWS),
        window=64 if lab.quick else WINDOW,
    )
    lines = [*calibrated(found), *repaired(found, started)]
    rows, figures = tuned(lab)
    bars = {name: math.exp(mean_loss(row["losses"][TEXTS[0]])) for name, row in found.items() if "nf2" not in name}
    chart = Chart("SmolLM2-135M untuned, perplexity of WikiText-2", bars=bars)
    figures |= {"ratios": started["ratios"]}
    return Outcome(lines, Table(HEADER, [*untuned_rows(found, started), *rows]), chart, figures)


HEADER = ["what", "entropy, bits", "error", *(f"perplexity, {text}" for text in TEXTS), "banking77 loss, tuned"]


def calibrated(found: dict[str, Found]) -> list[Line]:
    """ICQ beside the format that it calibrates."""
    plain, icq = (found[name] for name in PAIRS[4])
    gains = [icq["entropy"] - plain["entropy"]]
    lines = [
        within("ICQ raises the mean entropy of NF4's codes by .05 to .08 bit", gains, 0.05, 0.08, "{:+.3f}"),
        within("ICQ's error is below NF4's", [icq["mean_error"] / plain["mean_error"]], 0, 1 - 1e-9, "{:.4f} times"),
    ]
    for bits, (plain_name, icq_name) in PAIRS.items():
        differences = [difference(found, icq_name, plain_name, text) for text in TEXTS]
        lines.append(
            not_above(f"{bits} bits: perplexity of {icq_name} not above {plain_name}, both texts", *differences)
        )
    return lines


def repaired(found: dict[str, Found], started: Found) -> list[Line]:
    """LoftQ's and QPiSSA's ratios on the model's own matrices, and the loss at step 0."""
    lines = []
    for name in ("loftq T=1", "qpissa"):
        ratios = started["ratios"][name]
        both = [ratios["least"], ratios["most"]]
        lines.append(within(f"error of {name} in (.6, .97) of NF4's, every matrix (least, most)", both, 0.6, 0.97))
    pairs = [(found["bf16"], started), (started, found["nf4+dq"])]
    first, second = ([over_rows(a["losses"][text], b["losses"][text], "windows") for text in TEXTS] for a, b in pairs)
    return [
        *lines,
        below("step 0: bf16 below LoftQ, both texts", *first),
        not_above("step 0: LoftQ not above NF4, both texts", *second),
    ]


def untuned_rows(found: dict[str, Found], started: Found) -> list[list[Any]]:
    """Entropy, error and perplexities."""

    def texts(row: Found) -> list[float]:
        return [round(math.exp(mean_loss(row["losses"][text])), 3) for text in TEXTS]

    rows = [
        [name, round(row["entropy"], 3) if row["entropy"] else None, round(row["mean_error"], 4), *texts(row), None]
        for name, row in found.items()
    ]
    return [*rows, [f"nf4+dq with LoftQ, r {RANK}", None, None, *texts(started), None]]


def tuned(lab: Lab) -> tuple[list[list[Any]], dict[str, Any]]:
    """QLoRA, IR-QLoRA and the two halves between them."""
    arms = {
        name: lab.seeds_of(
            name,
            {"method": method, "r": 16, "lora_alpha": 32.0},
            RATE,
            SEEDS,
            data=DATA,
            quantization={"format": stored},
        )
        for name, (stored, method) in TUNED.items()
    }
    losses = {name: [arm["loss"] for arm in found] for name, found in arms.items()}
    first, *_, last = losses
    rows = [[name, None, None, None, None, round(statistics.fmean(values), 4)] for name, values in losses.items()]
    return rows, {"tuned loss, IR-QLoRA - QLoRA": over_seeds(losses[last], losses[first]).say()}


PAPER_ROWS = [
    ["NF4, untuned", 35.1],
    ["NF4-ICQ, untuned", 35.6],
    ["QLoRA", 38.4],
    ["ICQ alone", 40.3],
    ["IEC alone", 40.2],
    ["IR-QLoRA", 40.8],
]

EXPERIMENT = Experiment(
    name="repairs",
    section="12.8",
    title="Losing less, and repairing what is lost: ICQ, LoftQ, QPiSSA",
    source="Qin et al. 2024 (IR-QLoRA), arXiv:2402.05445: MMLU of LLaMA-7B after Alpaca, mean entropy of codes 3.67 to "
    "3.74 bits; Li et al. 2023 (LoftQ), arXiv:2310.08659; Meng et al. 2024 (PiSSA), arXiv:2404.02948",
    protocol=f"SmolLM2-135M-Instruct, {WINDOWS} windows of {WINDOW} tokens of each text as in 12.4; LoftQ and QPiSSA "
    f"of rank {RANK} on all 210 matrices by their definition, against NF4 with double quantization. "
    "Tuned, without a pass line: "
    f"{DATA.say()}, one epoch, batch 16, r 16 alpha 32, rate {RATE:g}, {SEEDS} seeds.",
    paper=Table(["weights and adapter", "MMLU"], PAPER_ROWS),
    paper_chart=Chart("IR-QLoRA: MMLU of LLaMA-7B", bars={str(name): float(value) for name, value in PAPER_ROWS}),
    run=run,
    notes="On normal weights the entropy rises by 0.074 bit (3.684 to 3.758), and the error changes by +0.4 %, -1.0 "
    "% and -0.6 % at 4, 3 and 2 bits. The weights here lie on 16 levels to 32 of them, and a centre moves a "
    "block's levels on or off that grid: with noise of one step of it added, every fifth matrix gives +0.070 "
    "bit and an error 1.002 times NF4's. Perplexity is decided by neither: with four draws of that noise, ICQ "
    "less NF4 is -0.138, +0.124, -0.066 and +0.011 nats on WikiText and -0.076, +0.065, -0.096 and -0.089 on "
    "Shakespeare (16 windows each). Rounding errors of the same size come out a tenth of a nat apart, so one "
    "model in 4 bits does not tell which of two such formats is better, and the intervals above, which are "
    "over windows, do not hold that. At 2 bits the model is gone either way; a checkpoint that was never "
    "rounded was not at hand. QPiSSA repairs more of some matrix than was asked. Tuned, IR-QLoRA and QLoRA "
    "are alike.",
    minutes=12,
)
