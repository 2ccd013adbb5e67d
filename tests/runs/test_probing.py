"""topcoat plan --measure: a child begins the run, and what it took corrects this plan and later ones."""

from __future__ import annotations

import json
import subprocess

import pytest

from topcoat.errors import Refused, TopcoatError
from topcoat.planning import calibration
from topcoat.runs import planning
from topcoat.runs.planning import plan

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
