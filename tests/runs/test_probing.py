"""topcoat plan --measure: a child begins the run, and what it took corrects this plan and later ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from topcoat.errors import Refused, TopcoatError
from topcoat.planning import calibration
from topcoat.planning.estimate import estimate
from topcoat.planning.process import PROCESS_BYTES
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs import planning, probing_child
from topcoat.runs.planning import plan
from topcoat.runs.run import run

FOUND = {
    "measured_bytes": 700_000_000,
    "predicted_bytes": 600_000_000,
    "micro_step_seconds": 0.5,
    "micro_step_tokens": 128,
    "rows": 10,
    "mean_tokens": 40.0,
    "longest_tokens": 64,
    "labelled": 0.5,
    "steps": 8,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def known_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "measure", lambda bf16: calibration.Reached(1e12, 1e11, 1e10, 1e-6))
    monkeypatch.setenv("TOPCOAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def child(monkeypatch):
    """child(stdout, code): what the child process answers."""

    def answers(out, code=0, err=""):
        done = subprocess.CompletedProcess([], code, stdout=out, stderr=err)
        monkeypatch.setattr("topcoat.runs.probing.subprocess.run", lambda *arguments, **options: done)

    return answers


def test_a_probe_in_a_real_child_is_kept_and_used_by_later_plans(tiny_recipe):
    said: list[str] = []
    measured = plan(tiny_recipe(), device="cpu", measure=True, say=said.append)
    assert any("two micro-steps on the longest rows" in text for text in said)
    assert measured.probe is not None
    assert measured.probe.measured_bytes > 100 * 2**20
    assert measured.estimate.speed.step_seconds[0] == measured.estimate.speed.step_seconds[1] > 0
    later = plan(tiny_recipe(), device="cpu")
    line = next(line for line in later.estimate.bill.lines if line.name == "difference measured")
    assert line.bytes == measured.probe.measured_bytes - measured.probe.predicted_bytes
    assert line.note == "median of one probe on this device"
    assert any(note.startswith("corrected by the median of one probe on this device") for note in later.notes)
    assert json.loads(json.dumps(measured.as_json(), allow_nan=False))["measured"]["steps"] == measured.probe.steps


def test_what_the_child_found_corrects_the_plan(tiny_recipe, child):
    child(f"something else\n{json.dumps(FOUND)}\n")
    made = plan(tiny_recipe(), device="cpu", measure=True)
    request = made.estimate.request
    assert (request.longest, request.labelled, request.residual_bytes) == (64, 0.5, 100_000_000)
    assert any("+16.7% of what was predicted for them; 0.5 s a micro-step" in note for note in made.notes)


def test_what_the_run_would_refuse_is_refused(tiny_recipe, child):
    problem = {"what": "one example does not fit", "where": "data.max_length", "fix": "shorten it"}
    child(json.dumps({"problems": [problem], "refused": True}))
    with pytest.raises(Refused, match="one example does not fit"):
        plan(tiny_recipe(), device="cpu", measure=True)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [(-9, Refused, "ended by the system, as it does when memory runs out"), (1, TopcoatError, "exit code 1: Boom: x")],
)
def test_a_child_that_dies_is_said(tiny_recipe, child, code, kind, said):
    child("", code, "Traceback\nBoom: x\n")
    with pytest.raises(kind) as caught:
        plan(tiny_recipe(), device="cpu", measure=True)
    assert said in str(caught.value)


def test_a_child_that_comes_to_no_end_is_ended_and_said(tiny_recipe, monkeypatch):
    def waits(*arguments, timeout, **options):
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr("topcoat.runs.probing.subprocess.run", waits)
    with pytest.raises(TopcoatError, match="the probe did not end within 30m 00s, and was ended") as caught:
        plan(tiny_recipe(), device="cpu", measure=True)
    assert "plan without --measure" in caught.value.problems[0].fix


@pytest.fixture
def figures(tiny_recipe, train, monkeypatch):
    """figures(**sections): what the child measures, in this process; no second one is paid for."""

    def measured(**sections):
        recipe = recipe_from_dict(tiny_recipe("probed", **sections))
        with pytest.raises(probing_child.Measured) as caught:
            run(recipe, rehearsed=probing_child.measure)
        return caught.value.figures

    return measured


def test_a_probe_saves_nothing(figures, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise AssertionError("a probe waits for no disk")

    monkeypatch.setattr("topcoat.runs.session.save_with_patience", full)
    monkeypatch.setattr("topcoat.runs.session.write_json", full)
    figures()
    assert not (tmp_path / "probed").exists()


def test_the_prediction_of_a_probe_is_that_of_a_plan(figures, tiny_recipe):
    found = figures()
    made = plan(tiny_recipe(), device="cpu")
    request = replace(made.estimate.request, labelled=None, longest_tokens=found["longest_tokens"])
    runtime = {line.name: line.bytes for line in estimate(request).bill.lines}["runtime"]
    assert runtime == PROCESS_BYTES
    assert found["predicted_bytes"] == pytest.approx(estimate(request).bill.peak_bytes, rel=0.01)


def test_only_the_micro_step_is_timed_and_all_rows_are_asked_for_labels(figures, monkeypatch):
    def slow():
        time.sleep(0.5)
        free()

    free = probing_child.free_leftovers
    monkeypatch.setattr(probing_child, "free_leftovers", slow)
    monkeypatch.setattr("topcoat.training.loop.free_leftovers", slow)
    found = figures(train={"batch_size": 1})
    assert 0 < found["micro_step_seconds"] < 0.5
    other = figures(train={"batch_size": 8})
    assert found["labelled"] == other["labelled"]
    assert found["micro_step_tokens"] < other["micro_step_tokens"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_before_the_step_is_not_the_step_s():
    cpu = torch.device("cpu")
    torch.ones(100_000_000)  # 400 MB, at once given back
    high = probing_child.peak_since(cpu)
    probing_child.forget_peak(cpu)
    assert probing_child.peak_since(cpu) < high - 200_000_000


def test_only_this_machine_and_real_rows_can_be_measured(tiny_recipe):
    with pytest.raises(TopcoatError, match="a device that is not this machine cannot be measured"):
        plan(tiny_recipe(), device="rtx4090", measure=True)
    with pytest.raises(TopcoatError, match="there are no rows to measure with"):
        plan("smollm2-135m", device="cpu", measure=True)


def test_a_recipe_may_be_a_dict_a_file_or_a_recipe(tiny_recipe, tmp_path):
    values = tiny_recipe()
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    recipe, _ = planning.read_subject(values, ())
    plans = [plan(subject, device="cpu").as_json() for subject in (values, file, str(file), recipe)]
    for found in plans:
        found["phases"].pop("merge")
        assert {**found, "room_bytes": 0, "budget_bytes": 0, "notes": []} == {
            **plans[0],
            "room_bytes": 0,
            "budget_bytes": 0,
            "notes": [],
        }
