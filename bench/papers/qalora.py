"""12.7: what a merge into integers costs: nothing for QA-LoRA, a new rounding for QLoRA. QA-LoRA's Table 1."""

from __future__ import annotations

import statistics
from typing import Any

from bench.papers.data import Cut
from bench.papers.intervals import Interval, Line, below, mean_loss, not_above, over_rows, over_seeds, within
from bench.papers.lab import Found, Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table

SETS = {"e2e": Cut("e2e", 320, 102), "banking77": Cut("banking77", 320, 100)}
BITS = (4, 3, 2)
GROUP, SEEDS = 32, 3
RATE, QA_RATE = 1e-3, 1.6e-2
QA = {"method": "qalora", "r": 16, "lora_alpha": 32.0, "qalora_group_size": GROUP}
QLORA = {
    "QLoRA r 16": {"method": "lora", "r": 16, "lora_alpha": 32.0},
    "QLoRA r 8": {"method": "lora", "r": 8, "lora_alpha": 16.0},
}
"""At equal rank, and at about equal parameters: a QA-LoRA of rank 16 has as many as a LoRA of rank 8.4."""
EXACT = [{"name": "unmerged", "how": "unmerged"}, {"name": "merged", "how": "exact"}]
NEAREST = [{"name": f"int{bits}", "how": "nearest", "bits": bits} for bits in BITS]
GPTQ = [{"name": f"int{bits} gptq", "how": "gptq", "bits": bits} for bits in BITS]
"""GPTQ's rounding is done for seed 0 of rank 16 alone: it takes as long as a training run."""


def run(lab: Lab) -> Outcome:
    """Both sets."""
    lines: list[Line] = []
    rows: list[list[Any]] = []
    bars: dict[str, float] = {}
    arms = {
        name: (
            {bits: qa_arms(lab, name, data, bits) for bits in BITS},
            {method: qlora_arms(lab, name, data, method) for method in QLORA},
        )
        for name, data in SETS.items()
    }
    for name, (quantized, plain) in arms.items():
        for bits in BITS:
            lines += compare(name, bits, quantized[bits], plain)
            rows += table_rows(name, bits, quantized[bits], plain)
        if name == "e2e":
            bars = {f"{row[2]}, {row[1]} bits": float(row[4]) for row in rows}
    header = ["rows", "bits", "method", "loss unmerged", "loss as integers", "cost of the merge"]
    return Outcome(lines, Table(header, rows), Chart("SmolLM2-135M, loss on E2E as integers", bars=bars))


def qa_arms(lab: Lab, name: str, data: Cut, bits: int) -> list[Found]:
    """QA-LoRA on integers of `bits`, merged into them."""
    stored = {"format": f"int{bits}", "group_size": GROUP}
    return lab.seeds_of(
        f"{name}, QA-LoRA int{bits}", QA, QA_RATE, SEEDS, data=data, quantization=stored, round_to=EXACT
    )


def qlora_arms(lab: Lab, name: str, data: Cut, method: str) -> list[Found]:
    """LoRA on NF4 with double quantization, merged to bf16 and rounded."""
    stored = {"format": "nf4", "double_quant": True}
    return [
        lab.train(
            f"{name}, {method}",
            QLORA[method],
            RATE,
            data=data,
            seed=seed,
            quantization=stored,
            round_to=[*NEAREST, *(GPTQ if seed == 0 and method == "QLoRA r 16" else [])],
        )
        for seed in lab.take_seeds(SEEDS)
    ]


def merged(arms: list[Found], to: str) -> list[float]:
    """Losses as integers, by seed."""
    return [mean_loss(arm["rounded"][to]) for arm in arms if to in arm["rounded"]]


def cost(arms: list[Found], to: str) -> Interval:
    """Of the merge: over seeds, or over rows where there is one seed."""
    chosen = [arm for arm in arms if to in arm["rounded"]]
    if len(chosen) == 1:
        return over_rows(chosen[0]["rounded"][to], chosen[0]["losses"])
    return over_seeds(merged(chosen, to), [arm["loss"] for arm in chosen])


def compare(name: str, bits: int, quantized: list[Found], plain: dict[str, list[Found]]) -> list[Line]:
    """The pass lines of one set at one width."""
    to, first = f"int{bits}", plain["QLoRA r 16"]
    costs = [a - b for a, b in zip(merged(quantized, "merged"), merged(quantized, "unmerged"), strict=True)]
    said = "{:+.1e}"
    lines = [within(f"{name}, {bits} bits: QA-LoRA's merge costs at most 1e-3", costs, -1e-3, 1e-3, said)]
    for method, arms in plain.items():
        lines.append(below(f"{name}, {bits} bits: rounding {method} costs something", cost(arms, to).times(-1)))
    lines.append(
        below(f"{name}, {bits} bits: rounding QLoRA r 16 by GPTQ costs something", cost(first, f"{to} gptq").times(-1))
    )
    if bits < 4:
        for method, arms in plain.items():
            wanted = f"{name}, {bits} bits: QA-LoRA as integers not above {method}"
            lines.append(not_above(wanted, over_seeds(merged(quantized, "merged"), merged(arms, to))))
    return lines


def table_rows(name: str, bits: int, quantized: list[Found], plain: dict[str, list[Found]]) -> list[list[Any]]:
    """Mean losses before and after."""
    to = f"int{bits}"
    asked = [("QA-LoRA r 16", quantized, "merged"), *((method, arms, to) for method, arms in plain.items())]
    asked.append(("QLoRA r 16, GPTQ", [plain["QLoRA r 16"][0]], f"{to} gptq"))
    found = []
    for method, arms, name_ in asked:
        unmerged = merged(arms, "unmerged") or [arm["loss"] for arm in arms]
        before, after = statistics.fmean(unmerged), statistics.fmean(merged(arms, name_))
        found.append([name, bits, method, round(before, 4), round(after, 4), f"{after - before:+.4f}"])
    return found


PAPER_ROWS = [
    ["QLoRA unmerged (4 + 16 bit)", "38.4 / 44.3", None, None],
    ["QLoRA merged, then GPTQ", "36.0 / 41.4", "34.0 / 36.9", "25.8 / 25.0"],
    ["QA-LoRA merged", "39.4 / 47.0", "37.4 / 44.7", "27.5 / 33.2"],
]
PAPER_BARS = {
    "QA-LoRA, 4 bits": 39.4,
    "QLoRA + GPTQ, 4 bits": 36.0,
    "QA-LoRA, 3 bits": 37.4,
    "QLoRA + GPTQ, 3 bits": 34.0,
    "QA-LoRA, 2 bits": 27.5,
    "QLoRA + GPTQ, 2 bits": 25.8,
}

EXPERIMENT = Experiment(
    name="qalora",
    section="12.7",
    title="What a merge into integers costs",
    source="Xu et al. 2023 (QA-LoRA), arXiv:2309.14717, Table 1: MMLU 5-shot of LLaMA-7B tuned on Alpaca / FLAN v2",
    protocol=f"SmolLM2-135M-Instruct; {'; '.join(cut.say() for cut in SETS.values())}; one epoch, batch 16, "
    f"cosine, rate {RATE:g} (QA-LoRA {QA_RATE:g}), scale 2, {SEEDS} seeds. QA-LoRA r 16 trains on integers of 4, 3 and "
    f"2 bits in groups of {GROUP}, and its lowest values are rounded to fp16 at the merge; before and after are "
    "measured in float32, since bf16 rounds more than that merge costs. QLoRA trains on NF4 with double quantization, "
    "is merged to bf16 and rounded to the same integers, to the nearest and (rank 16, seed 0) by GPTQ on 64 training "
    "rows. Higher is better in the paper, lower here. Intervals are over seeds, GPTQ's over validation rows.",
    paper=Table(["method", "4 bits", "3 bits", "2 bits"], PAPER_ROWS),
    paper_chart=Chart("QA-LoRA, Table 1: MMLU after Alpaca (higher is better)", bars=PAPER_BARS),
    run=run,
    minutes=30,
)
