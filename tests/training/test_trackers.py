"""Trackers get the figures of every row; one that fails is left out and the run goes on."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from topcoat.errors import TopcoatError
from topcoat.training import trackers as module
from topcoat.training.trackers import trackers

ROWS = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "note": "text"}]


def test_no_trackers_are_no_trouble(tmp_path):
    assert trackers([], tmp_path, pytest.fail) == []


def test_all_that_are_not_installed_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(TopcoatError) as caught:
        trackers(["tensorboard", "wandb"], tmp_path, pytest.fail)
    text = str(caught.value)
    assert "report_to names tensorboard, which is not installed" in text
    assert "pip install wandb, or leave it out: metrics.jsonl and report.html need no tracker" in text


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch):
    calls, warnings = [], []

    def failing(row):
        calls.append(row)
        raise RuntimeError("upload refused")

    monkeypatch.setattr(module, "find_spec", lambda name: True)
    monkeypatch.setitem(module.MAKERS, "wandb", lambda folder: failing)
    (record,) = trackers(["wandb"], tmp_path, warnings.append)
    for row in ROWS:
        record(row)
    assert calls == ROWS[:1]
    assert warnings == ["wandb failed and is left out from here on: upload refused; metrics.jsonl has every figure"]


def test_a_tracker_that_cannot_even_start_ends_nothing(tmp_path, monkeypatch):
    warnings = []
    broken = ModuleType("wandb")

    def init(**settings):
        raise RuntimeError("no API key configured")

    broken.init = init
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    for record in trackers(["wandb"], tmp_path, warnings.append):
        record(ROWS[0])
    assert len(warnings) == 1
    assert "no API key configured" in warnings[0]


def test_wandb_gets_the_figures_at_their_step(tmp_path, monkeypatch):
    logged = []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

    fake = ModuleType("wandb")
    fake.init = lambda **settings: Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    (record,) = trackers(["wandb"], tmp_path, pytest.fail)
    record(ROWS[0])
    assert logged == [(1, {"loss": 2.0})]


def test_tensorboard_writes_an_event_file(tmp_path):
    pytest.importorskip("tensorboard")
    (record,) = trackers(["tensorboard"], tmp_path, pytest.fail)
    for row in ROWS:
        record(row)
    assert list((tmp_path / "tensorboard").glob("events.*"))
