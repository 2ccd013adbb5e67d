"""The whole harness on a tiny model: processes, gates, turns and the file; ours beside PEFT in a plain loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench.contenders import CONTENDERS
from bench.gates import IGNORE
from bench.results import counts
from bench.rounds import Measurement, joined, measure
from bench.workloads import SUITES, TINY, Workload

from bench import prepare, run

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    prepare.prepare(TINY, folder, Path("no data"))
    return folder


def measurement(cache, rows, workload=TINY):
    pythons = {"topcoat": sys.executable, "peers": sys.executable}
    return Measurement(workload, pythons, cache, "cpu", 1, 1, 1.0, rows.append, say=lambda text: None)


@pytest.mark.slow  # the longest of the bench: half a minute, in processes of their own
def test_quick_measures_ours_beside_peft(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ceiling", lambda suite, threads: 100.0)
    output = tmp_path / "cpu.json"
    options = ["--quick", "--now", "--threads", "1", "--cache", str(cache), "--peers-python", sys.executable]
    run.main(["cpu", "--workloads", "tiny", *options, "--output", str(output)])
    found = json.loads(output.read_text())
    peft, ours = sorted(found["rows"], key=lambda row: row["is_ours"])
    assert (peft["contender"], ours["contender"]) == ("peft-fp32", "topcoat-none-fp32")
    for row in (peft, ours):
        assert row["gate"]["passed"]
        assert row["gate"]["loss"] == pytest.approx(row["gate"]["reference"]["loss"], rel=1e-5)
        assert [step["round"] for step in row["steps"]] == [None, 0, -1, -2, 1]
        assert [step["tokens"] for step in row["steps"]] == [256] * 5
        assert row["peak_bytes"] >= row["load_peak_bytes"] > 0
    for theirs, mine in zip(peft["steps"], ours["steps"], strict=True):  # the same training, not only the same start
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert ours["best_peer"] == "peft-fp32"
    assert ours["speed_ratio"] > 0
    assert found["ceiling"] == {"before": 100.0, "after": 100.0}
    assert found["environment"]["peers"]["peft"]
    assert found["environment"]["commit"] == run.commit()


def test_a_shifted_label_is_stopped_and_counts_for_nothing(cache, tmp_path):
    """The deliberate fault: a contender that trains on each next token but one."""
    rows = []
    this = measurement(cache, rows)
    this.make_reference()
    shifted = [
        [{**document, "labels": [IGNORE, *document["labels"][2:], document["labels"][1]]} for document in step]
        for step in this.documents
    ]
    path = tmp_path / "shifted.json"
    path.write_text(json.dumps(shifted))
    this.spec["batches"] = str(path)
    measure(this, ["peft-fp32"])
    (row,) = rows
    assert not row["gate"]["passed"]
    assert any("its loss is" in problem for problem in row["gate"]["problems"])


def test_the_reference_is_made_again_when_the_data_changes(cache):
    this = measurement(cache, [])
    this.make_reference()
    known = this.folder / "reference.json"
    known.write_text(json.dumps({"digest": "another", "loss": 1.0, "grad_norm": 1.0}))
    this.reference = {}
    this.make_reference()
    assert this.reference["digest"] == this.digest
    assert this.reference["loss"] > 5  # of random tokens over 512


def test_a_contender_that_dies_is_a_row_with_the_end_of_its_log(cache, tmp_path):
    rows = []
    this = measurement(cache, rows)
    this.make_reference()
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho there is no room left >&2\nexit 3\n")
    dies.chmod(0o755)
    this.pythons["topcoat"] = str(dies)
    measure(this, ["topcoat-none-fp32"])
    (row,) = rows
    assert row["failed"] == "exit status 3: there is no room left"
    assert not counts(row)


def test_runs_of_one_contender_become_one_row():
    gate = {"passed": True}
    step = {"round": 1, "tokens": 100, "seconds": 1.0}
    before = {"steps": [step], "peak_bytes": 7, "gate": gate}
    after = {"steps": [{**step, "round": 2, "seconds": 3.0}], "peak_bytes": 5, "gate": gate}
    row = joined(before, after)
    assert row["peak_bytes"] == 7
    assert row["tokens_per_s"] == pytest.approx((100 + 100 / 3) / 2)


def test_every_workload_names_contenders_that_exist_and_compares_with_some_of_them():
    for suite in SUITES.values():
        for workload in suite.values():
            assert set(workload.contenders + workload.extra) <= CONTENDERS.keys()
            assert set(workload.against) <= set(workload.contenders + workload.extra)


def test_a_gpu_suite_without_a_gpu_is_refused():
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        run.main(["gpu", "--now"])


def test_an_unknown_workload_and_an_absent_environment_are_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        run.main(["cpu", "--workloads", "135m"])
    assert "no workload 135m; there are 135m-4x512," in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"is not there: make bench/\.venv/\.installed"):
        run.main(["cpu", "--peers-python", str(tmp_path / "python")])


def test_packed_rows_fill_the_budget_with_as_many_documents_in_every_step():
    pool = [{"input_ids": [1] * (20 + at % 60), "labels": []} for at in range(400)]
    workload = Workload("w", "", "tiny", "chat", 4, 128, (), steps=5)
    steps = prepare.fill_steps(pool, workload)
    assert len(steps) == 5
    assert len({len(step) for step in steps}) == 1
    for step in steps:
        assert prepare.FULL * 512 <= sum(len(document["input_ids"]) for document in step) <= 512
