"""12.4: number formats by the perplexity of the untuned model. QLoRA's Table 2: bf16 < NF4 < all other 4 bits."""

from __future__ import annotations

import math

from bench.papers.intervals import Interval, below, mean_loss, over_rows, within
from bench.papers.lab import Found, Lab
from bench.papers.protocol import Chart, Experiment, Outcome, Table

WINDOWS, WINDOW = 40, 1024
TEXTS = ("wikitext2", "shakespeare")
STORES: dict[str, dict[str, object] | None] = {
    "bf16": None,
    "nf4": {"format": "nf4", "double_quant": False},
    "nf4+dq": {"format": "nf4", "double_quant": True},
    "fp4 (bitsandbytes)": {"format": "fp4", "double_quant": False},
    "e2m1": {"simulated": "e2m1"},
    "e3m0": {"simulated": "e3m0"},
    "int4 symmetric": {"simulated": "int4-symmetric"},
    "int4 g32": {"format": "int4", "group_size": 32},
    "q4_0": {"format": "gguf", "type": "Q4_0"},
}
"""All in blocks of 64 with float32 scales, but the last three and nf4+dq; the last two are for information."""


def measured(lab: Lab, stores: dict[str, dict[str, object] | None]) -> dict[str, Found]:
    """Name -> what the model in that format does on both texts."""
    texts = dict.fromkeys(TEXTS, 2 if lab.quick else WINDOWS)
    window = 64 if lab.quick else WINDOW
    return {
        name: lab.do("stored_model", name, store=store, texts=texts, window=window) for name, store in stores.items()
    }


def difference(found: dict[str, Found], one: str, other: str, text: str) -> Interval:
    """Loss of `one` less that of `other` on a text, in nats a token."""
    return over_rows(found[one]["losses"][text], found[other]["losses"][text], "windows")


def run(lab: Lab) -> Outcome:
    """Every format on both texts."""
    found = measured(lab, STORES)

    def both(one: str, other: str) -> list[Interval]:
        return [difference(found, one, other, text) for text in TEXTS]

    others = ("fp4 (bitsandbytes)", "e2m1", "e3m0")
    changes = [math.expm1(d.mean) for d in both("nf4+dq", "nf4")]
    lines = [
        below("bf16 below NF4 on both texts", *both("bf16", "nf4")),
        *(below(f"NF4 below {name} on both texts", *both("nf4", name)) for name in others),
        below("NF4 below symmetric Int4 on both texts", *both("nf4", "int4 symmetric")),
        within("NF4 with double quantization within 0.5 % of NF4's perplexity", changes, -0.005, 0.005, "{:+.3%}"),
    ]
    return Outcome(lines, table(found), chart(found), {"e2m1 - e3m0, nats": [d.say() for d in both("e2m1", "e3m0")]})


def table(found: dict[str, Found]) -> Table:
    """Perplexity of each text, bits a weight and error."""
    rows = []
    for name, row in found.items():
        values = [round(math.exp(mean_loss(row["losses"][text])), 3) for text in TEXTS]
        rows.append([name, round(row["bits_per_weight"], 3), *values, round(row["mean_error"], 4)])
    return Table(["format", "bits a weight", *(f"perplexity, {text}" for text in TEXTS), "error of a weight"], rows)


def chart(found: dict[str, Found]) -> Chart:
    """Perplexity of WikiText."""
    bars = {name: math.exp(mean_loss(row["losses"][TEXTS[0]])) for name, row in found.items()}
    return Chart("SmolLM2-135M, perplexity of WikiText-2", bars=bars)


PAPER = {"int4": 34.34, "e2m1": 31.07, "e3m0": 29.48, "nf4+dq": 27.41}

EXPERIMENT = Experiment(
    name="formats",
    section="12.4",
    title="Number formats by perplexity",
    source="Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, Table 2: mean perplexity of Pile-CC over OPT, BLOOM, "
    "LLaMA and Pythia of 125M to 13B parameters",
    protocol=f"SmolLM2-135M-Instruct, its linears through each format and back, nothing trained; the first {WINDOWS} "
    f"windows of {WINDOW} tokens of WikiText-2 (as published, not detokenised) and of tiny Shakespeare. Intervals are "
    "of the paired difference in nats a token, over windows drawn again. Blocks of 64 with float32 scales, but for "
    "nf4+dq, int4 g32 and q4_0. GPT-2 small is not measured.",
    paper=Table(["format", "perplexity"], [[name, value] for name, value in PAPER.items()]),
    paper_chart=Chart("QLoRA, Table 2: mean perplexity of Pile-CC", bars=PAPER),
    run=run,
    minutes=10,
)
