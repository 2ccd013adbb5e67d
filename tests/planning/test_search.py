"""Searching: what fits is proposed and does fit, the fastest first; what does not fit is told with what would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.planning.devices import GIB, find_device
from topcoat.planning.estimate import estimate
from topcoat.planning.request import Request
from topcoat.planning.search import search
from topcoat.planning.shapes import known_model
from topcoat.quant.settings import Nf4Config
from topcoat.training.settings import TrainSettings


def request(name="llama-3.2-1b", device="rtx3060", **changes) -> Request:
    used = find_device(device)
    settings = {
        "architecture": known_model(name),
        "adapter": LoraConfig(),
        "quantization": Nf4Config(),
        "train": TrainSettings(),
        "compute_dtype": "bf16",
        "max_length": 1024,
        "device": used,
        "budget_bytes": used.memory_bytes,
        "answered": 0,
    }
    return Request(**settings | changes)


@pytest.mark.parametrize("budget", [2, 3, 4, 6, 8, 12])
def test_what_is_proposed_fits_and_the_fastest_comes_first(budget):
    asked = request(budget_bytes=budget * GIB)
    found = search(asked)
    assert all(candidate.estimate.fits for candidate in found.fastest)
    times = [candidate.estimate.speed.step_seconds[1] for candidate in found.fastest]
    assert times == sorted(times)
    assert len({candidate.changes for candidate in found.fastest}) == len(found.fastest)
    assert (found.smallest_change is None) == (estimate(asked).fits or not found.fastest)
    assert found.smallest.estimate.peak_bytes <= min((c.estimate.peak_bytes for c in found.fastest), default=10**15)


def test_more_memory_is_never_slower():
    times = []
    for budget in (3, 4, 6, 8, 12):
        found = search(request(budget_bytes=budget * GIB))
        times.append(found.fastest[0].estimate.speed.step_seconds[1])
    assert times == sorted(times, reverse=True)


def test_the_smallest_change_keeps_format_method_and_length_where_it_can():
    change = search(request("llama-3.1-8b", budget_bytes=30 * GIB // 4)).smallest_change
    assert change is not None
    assert all(text.startswith("train.") for text in change.changes)
    dense = search(request("llama-3.1-8b", budget_bytes=12 * GIB, quantization=None)).smallest_change
    assert dense is not None
    assert any(text.startswith("model.quantization.format=") for text in dense.changes)
    assert not any(text.startswith(("adapter", "data")) for text in dense.changes)


def test_a_model_too_large_to_train_whole_is_offered_an_adapter():
    change = search(request("llama-3.1-8b", "a100-40", adapter=FullConfig(), quantization=None)).smallest_change
    assert change is not None
    assert "adapter.method=lora" in change.changes


def test_moments_in_8_bits_are_offered_to_full_tuning_on_a_gpu_and_a_file_on_a_cpu():
    asked = request("qwen2.5-0.5b", adapter=FullConfig(), quantization=None, budget_bytes=9 * GIB)
    change = search(asked).smallest_change
    assert change is not None
    assert any("adamw_8bit" in text or "paged" in text for text in change.changes)
    on_cpu = replace(asked, device=replace(asked.device, kind="cpu"), budget_bytes=10 * GIB)
    found = search(on_cpu).smallest_change
    assert found is not None
    assert not any("8bit" in text or "32bit" in text for text in found.changes)


def test_answers_are_given_up_before_the_format_is():
    asked = request("llama-2-7b-hf", "rtx3060", answered=32, longest_tokens=600)
    assert not estimate(asked).fits
    change = search(asked).smallest_change
    assert change is not None
    assert change.changes == ("evaluate.metrics=[perplexity] evaluate.samples=0",)


def test_where_nothing_fits_it_says_by_how_much_and_which_device_would_do():
    found = search(request("llama-2-70b-hf", "rtx4090"))
    assert found.fastest == ()
    assert found.smallest_change is None
    assert found.smallest.estimate.room_bytes < 0
    assert found.larger_device is not None
    assert 40 * GIB < found.larger_device.memory_bytes <= 48 * GIB


def test_a_trade_is_said_in_speed_and_memory():
    found = search(request("llama-3.1-8b", "rtx4090"))
    said = found.fastest[1].trade(found.fastest[0])
    assert "memory" in said
    assert "slower" in said or "as fast" in said


def test_recompute_auto_uses_the_room_there_is():
    tight, wide = (estimate(request("llama-3.1-8b", "rtx4090", budget_bytes=size * GIB)) for size in (9, 24))
    assert set(wide.policies) == {"none"}
    assert "block" in tight.policies or "qkv" in tight.policies
    assert tight.fits
    assert tight.bill.peak_bytes > 8 * GIB  # the room is used, not left
