"""This machine's CPU is measured once, kept, and measured again only when what was kept is of no use."""

from __future__ import annotations

import json

import pytest

from topcoat.planning import calibration
from topcoat.planning.calibration import Reached, cpu_device
from topcoat.planning.machine import machine


@pytest.fixture
def counted(monkeypatch):
    calls = []

    def measure(bf16: bool) -> Reached:
        calls.append(bf16)
        return Reached(2e12, 1e11, 1e10, 1e-6)

    monkeypatch.setattr(calibration, "measure", measure)
    return calls


def test_it_is_measured_once_and_then_read(tmp_path, counted):
    facts = machine(ask_torch=False)
    said: list[str] = []
    first, second = (cpu_device(facts, tmp_path / "cache", said.append) for _ in range(2))
    assert first == second
    assert len(counted) == 1
    assert said == ["measuring this CPU once: a product, a copy and small calls"]
    assert (first.flops(2), first.flops(4), first.bandwidth, first.kind) == (2e12, 1e11, 1e10, "cpu")


@pytest.mark.parametrize("text", ["", "{", '{"version": 0}', '{"version": 1, "flops_16bit": -1}', "[]"])
def test_what_is_damaged_is_measured_again(tmp_path, counted, text):
    facts = machine(ask_torch=False)
    cpu_device(facts, tmp_path)
    (file,) = (tmp_path / "calibration").iterdir()
    file.write_text(text)
    cpu_device(facts, tmp_path)
    assert len(counted) == 2
    assert json.loads(file.read_text())["flops_16bit"] == 2e12


def test_without_a_cache_it_says_so_and_goes_on(tmp_path, counted):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert cpu_device(machine(ask_torch=False), tmp_path / "file", said.append).bandwidth == 1e10
    assert "cannot be written" in said[-1]


def test_the_measurement_is_of_this_machine():
    reached = calibration.measure(bf16=False)
    assert 1e8 < reached.flops_fp32 == reached.flops_16bit < 1e14
    assert 1e8 < reached.bandwidth < 1e13
    assert 1e-8 < reached.call_seconds < 1e-2
