"""Bills against figures that others published, and against the table of the engine study (section 3.2)."""

from __future__ import annotations

import pytest

from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.planning import search as searching
from topcoat.planning.architecture import architecture_of
from topcoat.planning.bill import group_bytes
from topcoat.planning.counts import counts_of
from topcoat.planning.devices import GIB, find_device
from topcoat.planning.estimate import estimate
from topcoat.planning.request import Request
from topcoat.planning.search import search
from topcoat.planning.shapes import SHAPES, known_model
from topcoat.quant.settings import DenseConfig, Nf4Config
from topcoat.training.settings import TrainSettings

FIXTURES = {  # N and E in billions, tied, P in millions, KiB a token and layer kept, layers, GiB in bf16, GiB in nf4
    "llama-3.1-8b": (6.979, 0.525, False, 41.94, 92.0, 32, 14.96, 3.35),
    "llama-2-7b-hf": (6.476, 0.131, False, 39.98, 91.0, 32, 12.55, 3.11),
    "qwen2.5-7b": (6.525, 0.545, False, 40.37, 104.0, 28, 14.18, 3.14),
    "llama-3.2-3b": (2.819, 0.394, True, 24.31, 60.0, 28, 5.98, 1.35),
    "llama-3.2-1b": (0.973, 0.263, True, 11.27, 50.0, 16, 2.30, 0.47),
    "qwen2.5-0.5b": (0.358, 0.136, True, 8.80, 26.5, 24, 0.92, 0.17),
    "smollm2-135m": (0.106, 0.028, True, 4.88, 11.2, 30, 0.25, 0.05),
}


def request(name: str, device: str = "l40s", **changes) -> Request:
    used = find_device(device)
    settings = {
        "architecture": known_model(name),
        "adapter": LoraConfig(),
        "quantization": Nf4Config(),
        "train": TrainSettings(),
        "compute_dtype": "bf16",
        "max_length": 512,
        "device": used,
        "budget_bytes": used.memory_bytes,
        "answered": 0,
    }
    return Request(**settings | changes)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_engine_studys_table(name):
    n, e, tied, p, kept, layers, bf16, nf4 = FIXTURES[name]
    a = known_model(name)
    counts = counts_of(a, LoraConfig(), Nf4Config())
    assert a.linear_numbers / 1e9 == pytest.approx(n, abs=0.0006)
    assert a.vocab * a.hidden / 1e9 == pytest.approx(e, abs=0.0006)
    assert (a.tied, a.layers) == (tied, layers)
    assert counts.trained_numbers / 1e6 == pytest.approx(p, abs=0.006)
    assert 2 * a.block_sizes.kept("none") / 1024 == pytest.approx(kept, abs=0.06)
    assert 2 * a.parameters / GIB == pytest.approx(bf16, abs=0.006)
    assert (counts.codes_bytes + counts.constant_bytes) / GIB == pytest.approx(nf4, abs=0.006)


def test_peft_counts_the_same_for_llama_3_8b():
    counts = counts_of(known_model("llama-3-8b"), LoraConfig(r=16), Nf4Config())
    assert counts.trained_numbers == 41_943_040
    assert known_model("llama-3-8b").parameters + counts.trained_numbers == 8_072_204_288


def test_doubly_quantized_nf4_takes_0_51587_bytes_a_weight():
    a = known_model("llama-3.1-8b")
    counts = counts_of(a, LoraConfig(), Nf4Config())
    assert (counts.codes_bytes + counts.constant_bytes) / a.linear_numbers == pytest.approx(0.51587, abs=1e-5)
    single = counts_of(a, LoraConfig(), Nf4Config(double_quant=False))
    assert (single.codes_bytes + single.constant_bytes) / a.linear_numbers == 0.5625


def test_7b_qlora_runs_in_6_gb():
    found = search(request("llama-2-7b-hf", budget_bytes=6 * 10**9))
    assert found.smallest_change is not None
    assert found.smallest_change.changes == ("train.micro_batch_tokens=1024",)
    assert 4.5e9 < found.smallest_change.estimate.peak_bytes < 6e9


def test_graphs_have_a_line_of_their_own_where_they_are_asked_for_and_can_be():
    """SmolLM2-135M, 2,048 tokens: 576 wide queries, 192 wide keys, a chunk of logits, four vectors of adapters."""
    asked = TrainSettings(cuda_graphs=True, recompute="none")
    small = {"quantization": None, "train": asked}
    made = estimate(request("smollm2-135m", **small))
    [line] = [line for line in made.bill.lines if line.name == "CUDA graphs"]
    attention = 2048 * (4 * 576 + 2 * 2 * (576 + 192))
    loss = next(line.bytes for line in made.bill.lines if line.name == "loss")
    assert line.bytes == attention + loss + 4 * 4 * made.counts.trained_numbers
    without = estimate(request("smollm2-135m", **small | {"train": TrainSettings(recompute="none")}))
    assert made.peak_bytes - without.peak_bytes == pytest.approx(1.03 * line.bytes, rel=1e-3)
    assert "others" not in group_bytes({line.name: line.bytes for line in made.bill.lines})
    full = estimate(request("smollm2-135m", **small | {"adapter": FullConfig()}))
    assert "CUDA graphs" not in {line.name for line in full.bill.lines}


def test_70b_qlora_runs_on_one_48_gb_card():
    made = estimate(request("llama-2-70b-hf", "rtxa6000"))
    assert made.fits
    assert made.peak_bytes > 36 * GIB


def test_full_tuning_of_8b_takes_near_16_bytes_a_parameter():
    settings = {"quantization": None, "compute_dtype": "fp32", "train": TrainSettings(recompute="block")}
    made = estimate(request("llama-3.1-8b", "b200", adapter=FullConfig(), **settings))
    names = ("trained parameters", "gradients", "optimizer moments")
    assert sum(line.bytes for line in made.bill.lines if line.name in names) == 16 * made.counts.trained_numbers
    assert 16 < made.bill.peak_bytes / made.counts.trained_numbers < 17


def test_bf16_lora_of_8b_takes_two_bytes_a_parameter_and_the_rest():
    counts = counts_of(known_model("llama-3.1-8b"), LoraConfig(), DenseConfig(format="bf16"))
    assert (counts.codes_bytes + 2 * (counts.embeddings + counts.rest)) / GIB == pytest.approx(14.96, abs=0.006)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_known_model_is_planned_with_its_search_in_few_estimates(shape, monkeypatch):
    """At most 130, of a millisecond or a few: a search answers at once."""
    asked = []
    monkeypatch.setattr(searching, "estimate", lambda *arguments: (asked.append(1), estimate(*arguments))[1])
    found = search(request(shape.name, "h100"))
    assert found.smallest.estimate.peak_bytes > 0
    assert len(asked) <= 130


@pytest.mark.parametrize("layers_hidden", [(2, 128), (128, 27_648)], ids=["a million", "a trillion"])
def test_models_of_a_million_and_of_a_trillion_parameters(layers_hidden):
    layers, hidden = layers_hidden
    facts = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "vocab_size": 4096}
    facts |= {"num_attention_heads": hidden // 64, "intermediate_size": 3 * hidden}
    a = architecture_of(facts, "made up")
    assert 1e6 < a.parameters < 2e6 or 1e12 < a.parameters < 2e12
    made = estimate(request("llama-3.1-8b", architecture=a))
    assert made.fits == (a.parameters < 1e9)
