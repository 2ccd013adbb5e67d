"""What a run meets that is not its own: missing or failing trackers, full disks, little memory, a folder in use."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from topcoat.disk_errors import disk_error
from topcoat.errors import Refused, TopcoatError
from topcoat.runs.finish import save_adapter
from topcoat.runs.merging import merge_run
from topcoat.training import trackers


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_made(tiny_recipe, train, monkeypatch):
    monkeypatch.setattr("topcoat.training.trackers.find_spec", lambda name: None)
    recipe = tiny_recipe(train={"report_to": ["wandb", "tensorboard"]})
    with pytest.raises(TopcoatError) as caught:
        train(recipe)
    assert [problem.what for problem in caught.value.problems] == [
        "report_to names wandb, which is not installed",
        "report_to names tensorboard, which is not installed",
    ]
    assert "pip install wandb, or leave it out" in str(caught.value)
    assert not Path(recipe["output"]).exists()


@pytest.mark.parametrize("when", ["opened", "third row"])
def test_a_tracker_that_raises_does_not_end_the_run(when, tiny_recipe, train, ear, monkeypatch):
    rows = []

    def open_tracker(folder):
        if when == "opened":
            raise ConnectionError("no key")

        def record(row):
            rows.append(row)
            if len(rows) == 3:
                raise ConnectionError("no key")

        return record

    monkeypatch.setattr("topcoat.training.trackers.find_spec", lambda name: object())
    monkeypatch.setitem(trackers.MAKERS, "wandb", open_tracker)
    listener = ear()
    result = train(tiny_recipe(train={"report_to": ["wandb"]}), listener=listener)
    assert result.steps == 8
    assert (
        listener.heard.count("wandb failed and is left out from here on: no key; metrics.jsonl has every figure") == 1
    )
    assert len(rows) == (0 if when == "opened" else 3)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("topcoat.training.patience.FIRST_PAUSE_S", 0.0)


def test_a_disk_without_room_for_a_line_of_metrics_pauses_the_run(
    impatient, tiny_recipe, train, trace, ear, monkeypatch
):
    expected = trace(train(tiny_recipe("whole")).folder)
    write, calls = os.pwrite, []

    def full(descriptor, data, at):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(("metrics.jsonl", "samples.jsonl")):
            calls.append(name)
            if len(calls) in (3, 4, 6):
                raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data, at)

    monkeypatch.setattr("topcoat.training.metrics.os.pwrite", full)
    listener = ear()
    result = train(tiny_recipe("paused"), listener=listener)
    paused = [text for text in listener.heard if "Training is paused" in text]
    assert len(paused) == 3
    assert paused[0].startswith("cannot write metrics.jsonl: no space is left on the disk (need ")
    assert trace(result.folder) == expected


def test_a_disk_without_room_for_the_adapter_pauses_the_run(impatient, tiny_recipe, train, trace, ear, monkeypatch):
    expected = trace(train(tiny_recipe("whole")).folder)
    tries = []

    def full(adapters, folder, *rest):
        tries.append(folder)
        save_adapter(adapters, folder, *rest)
        if len(tries) < 3:
            raise disk_error(OSError(errno.ENOSPC, "full"), folder / "adapter_model.safetensors", 1000)

    monkeypatch.setattr("topcoat.runs.finish.save_adapter", full)
    listener = ear()
    result = train(tiny_recipe("paused"), listener=listener)
    assert len(tries) == 3
    assert "need 1000 B" in listener.text
    assert not list(result.folder.glob("*.tmp-*"))
    assert trace(result.folder) == expected


def test_a_disk_that_cannot_hold_the_checkpoints_says_so_at_the_start(tiny_recipe, train, monkeypatch):
    monkeypatch.setattr("topcoat.training.checkpoint.free_bytes", lambda path: 10_000)
    with pytest.raises(TopcoatError, match=r"checkpoints need .* more \(3 of .*\), 9\.8 KiB free") as caught:
        train(tiny_recipe())
    assert caught.value.exit_code == 1
    assert "lower train.keep_checkpoints" in caught.value.problems[0].fix


def test_a_run_that_would_not_fit_is_refused_before_the_first_step(tiny_recipe, train, monkeypatch):
    monkeypatch.setattr("topcoat.runs.run.free_memory", lambda device: 2**20)
    recipe = tiny_recipe()
    with pytest.raises(TopcoatError, match=r"the run needs about .* of memory and 1\.0 MiB are free") as caught:
        train(recipe)
    assert caught.value.exit_code == 1
    assert not Path(recipe["output"]).exists()


@pytest.mark.parametrize("content", ["a run", "other files"])
def test_a_folder_that_is_not_free_is_left_as_it_is(content, tiny_recipe, train):
    recipe = tiny_recipe()
    folder = Path(recipe["output"])
    if content == "a run":
        train(recipe)
    else:
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(TopcoatError) as caught:
        train(recipe)
    [problem] = caught.value.problems
    if content == "a run":
        assert problem.what == f"{folder} holds another run"
        assert problem.fix == "add --resume to continue it, or name another output folder"
    else:
        assert problem.what == f"{folder} is not empty: it holds thesis.tex"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_edited_model_config_is_noticed_on_resume_and_on_load(tiny_recipe, train, tmp_path):
    recipe = tiny_recipe(train={"max_steps": 2})
    model = tmp_path / "edited"
    shutil.copytree(recipe["model"]["path"], model)
    recipe["model"] = {**recipe["model"], "path": str(model)}
    train(recipe)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(TopcoatError, match="model config changed since step"):
        train(recipe, resume=True)
    with pytest.raises(Refused, match="trained with another model config"):
        merge_run(Path(recipe["output"]))
