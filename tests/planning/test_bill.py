"""The memory bill: what is counted is what is allocated, and what does not fit is refused with what would."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from topcoat.adapters.attach import attach
from topcoat.adapters.files import adapter_tensors
from topcoat.adapters.settings import AdaloraConfig, DoraConfig, FullConfig, LoraConfig, VeraConfig
from topcoat.errors import Refused
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import tiny_config
from topcoat.planning.architecture import architecture_of
from topcoat.planning.bill import Bill, Line, group_bytes
from topcoat.planning.devices import DEVICES
from topcoat.planning.estimate import estimate
from topcoat.planning.loaded import loaded_counts
from topcoat.planning.request import Request
from topcoat.planning.sizes import Setup, bill_of
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, Int8Config, Nf4Config
from topcoat.training.optimizers.choices import make_optimizer
from topcoat.training.optimizers.sizes import SLICE
from topcoat.training.ranks import rank_allocation
from topcoat.training.settings import TrainSettings

QUANTIZATIONS = [None, DenseConfig(format="bf16"), Nf4Config(), Int8Config()]


def billed(tiny_llama, quantization=None, config=None, **changes):
    settings = ModelSettings(path=str(tiny_llama), quantization=quantization, compute_dtype="fp32", device="cpu")
    model = load_model(settings).model
    adapters = attach(model, config or LoraConfig(r=4))
    setup = Setup(**{"tokens": 100, "rows": 100, "element_bytes": 4, "runtime_bytes": 0} | changes)
    made = bill_of(loaded_counts(model, adapters.parameters()), setup)
    return made, Counter({line.name: line.bytes for line in made.lines}), model, adapters


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize(
    "config", [LoraConfig(r=4), LoraConfig(r=4, modules_to_save=["lm_head"])], ids=["lora", "saved"]
)
def test_planned_bytes_are_allocated_bytes(tiny_llama, quantization, config, tmp_path):
    _, lines, model, adapters = billed(tiny_llama, quantization, config)
    linears = [m for m in model.modules() if isinstance(m, FrozenLinear)]
    stored = lines["frozen weights"] + lines["quantization constants"]
    assert stored == sum(t.nbytes for m in linears for t in m.weight_state.tensors.values())
    trained = list(adapters.parameters().values())
    assert lines["trained parameters"] == lines["gradients"] == sum(p.nbytes for p in trained)
    optimizer = make_optimizer(adapters.parameters(), TrainSettings(), folder=tmp_path)
    assert lines["optimizer moments"] == sum(t.nbytes for t in optimizer.state().values())
    ours = {id(p) for p in trained}
    dense = lines["embeddings and head"] + lines["norms and biases"]
    assert dense == sum(p.nbytes for p in model.parameters() if id(p) not in ours)


@pytest.mark.parametrize("config", [LoraConfig(r=4), FullConfig()], ids=["lora", "full"])
def test_the_activations_billed_are_near_those_that_autograd_keeps(tiny_llama, config):
    made, lines, model, _ = billed(tiny_llama, None, config, tokens=256)
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    parameters |= {b.untyped_storage().data_ptr() for b in model.buffers()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model(torch.arange(256)[None] % 300, use_cache=False).last_hidden_state
    measured = sum(kept.values())
    assert hidden.requires_grad
    assert 0.5 * measured < lines["saved activations"] < 2 * measured
    assert made.peak_bytes == sum(lines.values())


def test_recomputing_blocks_and_fewer_tokens_cost_less(tiny_llama):
    def activations(**changes):
        return billed(tiny_llama, **changes)[1]["saved activations"]

    assert activations(recomputed=True) < activations()
    assert activations(tokens=50) * 2 == activations(tokens=100)


def test_adalora_s_scores_are_billed_as_they_are_kept(tiny_llama):
    made, lines, _, adapters = billed(tiny_llama, config=AdaloraConfig(init_r=5, target_r=3))
    kept = [t for t in rank_allocation(adapters, 100).state().values() if t.is_floating_point()]
    assert lines["importance scores"] == sum(t.nbytes for t in kept) == 8 * adapters.count()
    said = next(line.note for line in made.lines if line.name == "importance scores")
    assert said == f"two in fp32 for each of {adapters.count():,}"


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, init_lora_weights="pissa"),
        LoraConfig(r=4, init_lora_weights="olora", freeze_lora_a=True),
        LoraConfig(r=4, freeze_lora_a=True),
        VeraConfig(r=8),
        DoraConfig(r=4),
    ],
    ids=["pissa", "olora with a frozen A", "frozen A", "vera", "dora"],
)
def test_what_an_adapter_holds_without_training_it_is_billed_in_fp32(tiny_llama, config):
    _, lines, model, adapters = billed(tiny_llama, config=config)
    ours = {p.data_ptr() for p in adapters.parameters().values()}
    held = {
        t.data_ptr(): t.nbytes
        for layer in adapters.layers.values()
        for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        if t.data_ptr() not in ours
    }
    assert lines["adapter's frozen matrices"] == sum(held.values()) > 0
    assert lines["gradients"] == sum(p.nbytes for p in adapters.parameters().values())
    dense = lines["embeddings and head"] + lines["norms and biases"]
    assert dense == sum(p.nbytes for p in model.parameters() if p.data_ptr() not in ours | set(held))
    assert group_bytes(lines)["what trains"] >= 3 * lines["gradients"] + sum(held.values())
    file = adapter_tensors(adapters)
    numbers = sum(t.numel() for t in file.values())
    counted = loaded_counts(model, adapters.parameters()).file_numbers
    assert numbers <= counted <= 1.2 * numbers  # DoRA: the rows' lengths are in no file


def test_a_file_of_twice_the_rank_takes_more_to_write_and_to_merge():
    architecture = architecture_of(tiny_config("llama").to_dict(), "x")
    made = Request(architecture, LoraConfig(r=4), None, TrainSettings(), "fp32", 64, DEVICES[0], 2**40)
    plain = estimate(made)
    folded = estimate(replace(made, adapter=LoraConfig(r=4, init_lora_weights="pissa")))
    P = plain.counts.trained_numbers
    assert folded.counts.file_numbers == 2 * P
    assert folded.phases["merge"] - plain.phases["merge"] == 4 * P
    wrote = {name: made.phases["save"] - made.phases["evaluate"] for name, made in (("p", plain), ("f", folded))}
    assert wrote["f"] - wrote["p"] == 8 * P  # its tensors are made on the device; host memory takes the rest


def test_the_moments_are_billed_as_the_optimizer_keeps_them(tiny_llama):
    in_memory, on_disk = (
        next(
            line
            for line in billed(tiny_llama, config=FullConfig(), optimizer=name)[0].lines
            if line.name == "optimizer moments"
        )
        for name in ("adamw", "paged_adamw")
    )
    assert in_memory.note == "two in fp32"
    assert (on_disk.bytes, on_disk.note) == (8 * SLICE, "two in fp32 on the disk, a slice at a time in memory")


def test_only_quantized_weights_need_a_buffer(tiny_llama):
    assert billed(tiny_llama)[1]["dequantization buffer"] == 0
    assert billed(tiny_llama, Nf4Config())[1]["dequantization buffer"] == 64 * 128 * 4


def test_nothing_of_a_token_is_taken_before_the_first_one(tiny_llama):
    lines = billed(tiny_llama, idle=True)[1]
    assert not {"saved activations", "backward working set", "loss"} & set(lines)


def test_what_fits_passes_and_an_unknown_machine_too():
    made = Bill((Line("frozen weights", 600), Line("activations", 400)))
    made.require_fit(1000)
    made.require_fit(None)
    assert json.loads(json.dumps(made.as_json())) == {
        "lines": [
            {"name": "frozen weights", "bytes": 600, "note": ""},
            {"name": "activations", "bytes": 400, "note": ""},
        ],
        "peak_bytes": 1000,
    }


def test_what_does_not_fit_is_refused_with_sizes_and_with_settings_that_need_less():
    made = Bill((Line("frozen weights", 6 * 2**30), Line("activations", 4 * 2**30)))
    with pytest.raises(Refused) as caught:
        made.require_fit(8 * 2**30)
    text = str(caught.value)
    assert "the run needs about 10.0 GiB of memory and 8.0 GiB are free" in text
    assert "most of it is frozen weights (6.0 GiB)" in text
    assert "train.recompute: block" in text
    assert caught.value.exit_code == 1
