"""A checkpoint is whole or it is not used: what is saved comes back, and what was touched is found."""

import json
import os
import resource
import shutil
import stat
import subprocess

import pytest
import torch
from saved_runs import IDENTITY, STATE, names, run, save, stored, tensors

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.training import checkpoint as checkpoint_module


@pytest.fixture
def two(tmp_path):
    """A run with checkpoints of step 10 and 20;"""
    checkpoints = run(tmp_path)
    save(checkpoints, 10)
    save(checkpoints, 20)
    return checkpoints


# --- what is saved comes back ---


def test_a_saved_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoints = run(tmp_path)
    path = save(checkpoints, 20, best=True)
    found = run(tmp_path).newest()
    assert path == checkpoints.folder / "step-00000020" == found.path
    assert (found.step, found.best, found.skipped) == (20, True, [])
    assert found.state == STATE | {"step": 20}
    for stem, part in tensors(20).items():
        read = stored(found, stem)
        assert read.keys() == part.keys()
        assert all(torch.equal(read[name], part[name]) for name in part)


def test_tensors_that_share_memory_and_nan_are_saved_as_they_are(tmp_path):
    one = torch.tensor([float("nan"), 1.0, -0.0])
    checkpoints = run(tmp_path)
    checkpoints.save(1, {"adapter": {"a": one, "b": one, "c": one[1:]}}, {}, best=False)
    found = stored(checkpoints.newest(), "adapter")
    assert torch.equal(found["a"].view(torch.int32), one.view(torch.int32))
    assert torch.equal(found["c"], one[1:])


def test_the_same_state_gives_the_same_bytes_whatever_its_order(tmp_path):
    first = save(run(tmp_path / "a"), 20)
    backwards = {stem: dict(reversed(part.items())) for stem, part in reversed(tensors(20).items())}
    state = dict(reversed((STATE | {"step": 20}).items()))
    second = run(tmp_path / "b").save(20, backwards, state, best=False)
    assert sorted(os.listdir(first)) == ["adapter.safetensors", "manifest.json", "optimizer.safetensors", "state.json"]
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_manifest_agrees_with_the_system_tools(tmp_path):
    path = save(run(tmp_path), 20)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["run_id"], manifest["identity"]) == (20, "run-1", IDENTITY)
    for name, record in manifest["files"].items():
        told = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout
        assert record == {"bytes": (path / name).stat().st_size, "sha256": told.split()[0]}


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        path = save(run(tmp_path), 20)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_last_byte, "adapter.safetensors differs from its recorded SHA-256"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "adapter.safetensors has"),
        (lambda path: path.unlink(), "adapter.safetensors is missing"),
        (lambda path: (path.parent / "manifest.json").write_text("{}"), "manifest.json does not describe"),
    ],
    ids=["changed", "cut", "deleted", "manifest"],
)
def test_a_file_that_changed_after_it_was_verified_is_found_while_it_is_read(two, damage, reason):
    found = two.newest()
    damage(found.path / "adapter.safetensors")
    with pytest.raises(TopcoatError) as caught:
        stored(found, "adapter")
    assert f"step-00000020 changed while it was read: {reason}" in str(caught.value)
    assert "resume again: what is damaged is passed over" in str(caught.value)
    assert two.newest().step == 10


def test_a_checkpoint_replaced_after_it_was_verified_is_not_read_as_the_one_that_was(two):
    found = two.newest()
    two.save(20, tensors(30), {"again": True}, best=False)
    with pytest.raises(TopcoatError, match=r"manifest\.json is another one"):
        stored(found, "adapter")


def test_tensors_that_do_not_fit_are_refused_before_anything_is_written(two):
    found = two.newest()
    mine = {"q_proj.lora_A": torch.zeros(2, 3), "q_proj.lora_B": torch.zeros(3, 2, dtype=torch.float64)}
    with pytest.raises(TopcoatError) as caught:
        found.read("adapter", mine)
    said = (
        "adapter.safetensors of step-00000020 does not fit this run: 0 tensors missing, 0 unknown, 1 of another shape"
    )
    assert said in str(caught.value)
    assert not any(bool(tensor.any()) for tensor in mine.values())


def test_tensors_are_read_and_written_in_slices_that_may_be_let_go_of(tmp_path, monkeypatch):
    """The memory of a mapped state: never more of it than one slice between two calls."""
    checkpoints, large = run(tmp_path), torch.arange(5 * 2**20, dtype=torch.int32)
    calls = []
    checkpoints.save(1, {"optimizer": {"m": large}}, {}, best=False, after_chunk=lambda: calls.append("w"))
    again = torch.zeros_like(large)
    checkpoints.newest().read("optimizer", {"m": again}, lambda: calls.append("r"))
    assert torch.equal(again, large)
    assert calls == ["w"] * 4 + ["r"] * 3  # 20 MiB in slices of 8, and one for the header that is written


def test_a_run_without_checkpoints_has_none(tmp_path):
    checkpoints = run(tmp_path)
    assert checkpoints.newest() is None
    assert checkpoints.skipped == []
    assert not checkpoints.folder.exists()


def test_a_moved_run_resumes(tmp_path):
    save(run(tmp_path / "here"), 20)
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(tmp_path / "there").newest().step == 20


# --- the writer is not trusted ---


def test_a_writer_that_drops_a_tensor_publishes_nothing(two, monkeypatch):
    real = checkpoint_module.pieces
    monkeypatch.setattr(checkpoint_module, "pieces", lambda part: real(dict(list(part.items())[1:])))
    with pytest.raises(TopcoatError, match=r"1 of 2 tensors missing or changed \(first: q_proj.lora_A\); not"):
        save(two, 30)
    assert names(two) == ["step-00000010", "step-00000020"]


def test_a_writer_that_turns_a_tensor_publishes_nothing(two, monkeypatch):
    real = checkpoint_module.pieces
    monkeypatch.setattr(checkpoint_module, "pieces", lambda p: real({n: t.reshape(-1) for n, t in p.items()}))
    with pytest.raises(TopcoatError, match="2 of 2 tensors missing or changed"):
        save(two, 30)


def test_a_disk_that_gives_back_other_bytes_is_a_failed_save(two, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "sha256_file", lambda path: "0" * 64)
    with pytest.raises(DiskFull, match="input/output error"):
        save(two, 30)
    assert names(two) == ["step-00000010", "step-00000020"]


def test_a_state_json_cannot_hold_writes_nothing(two):
    with pytest.raises(TypeError):
        two.save(30, tensors(30), {"x": object()}, best=False)
    assert names(two) == ["step-00000010", "step-00000020"]


# --- the wrong run ---


def test_a_checkpoint_of_another_run_is_passed_over_and_never_deleted(two, tmp_path):
    other = run(tmp_path / "other", run_id="run-2")
    shutil.copytree(save(other, 30), two.folder / "step-00000030")
    found = two.newest()
    assert found.step == 20
    assert found.skipped == ["step-00000030 is not usable: it belongs to another run (run-2, not run-1)"]
    narrow = run(tmp_path, keep=1)
    save(narrow, 40)
    save(narrow, 50)
    assert names(narrow) == ["step-00000030", "step-00000050"]


def test_a_changed_origin_is_an_error_that_names_all_that_changed(two, tmp_path):
    now = run(tmp_path, identity={"base": "0ther", "config": "c0nf1g", "data": "d4ta"})
    with pytest.raises(TopcoatError) as caught:
        now.newest()
    assert "base changed since step 20: b4se then, 0ther now" in str(caught.value)
    assert "data changed since step 20: unset then, d4ta now" in str(caught.value)
    assert "give the base of that time again" in str(caught.value)
    assert "config" not in str(caught.value)


# --- deleting what is old ---


def test_the_newest_are_kept_and_the_best_besides(tmp_path):
    checkpoints = run(tmp_path, keep=2)
    for step in range(10, 70, 10):
        save(checkpoints, step, best=step in (10, 20))
    assert names(checkpoints) == ["step-00000020", "step-00000050", "step-00000060"]
    assert checkpoints.best().step == 20
    assert checkpoints.newest().step == 60


def test_the_one_resumed_from_is_kept(tmp_path):
    save(run(tmp_path, keep=1), 10)
    checkpoints = run(tmp_path, keep=1)
    assert checkpoints.newest().step == 10
    for step in (20, 30, 40):
        save(checkpoints, step)
    assert names(checkpoints) == ["step-00000010", "step-00000040"]


def test_a_broken_checkpoint_never_pushes_out_a_good_one(tmp_path):
    checkpoints = run(tmp_path, keep=2)
    save(checkpoints, 10)
    (save(checkpoints, 20) / "state.json").unlink()
    save(checkpoints, 30)
    assert names(checkpoints) == ["step-00000010", "step-00000020", "step-00000030"]
    save(checkpoints, 40)
    assert names(checkpoints) == ["step-00000030", "step-00000040"]


def test_a_run_that_fell_back_saves_the_broken_step_again(two):
    (two.folder / "step-00000020" / "state.json").unlink()
    assert two.newest().step == 10
    save(two, 20)
    assert two.newest().step == 20
    assert names(two) == ["step-00000010", "step-00000020"]


def test_saving_a_step_twice_keeps_the_second(two):
    two.save(20, tensors(20), {"again": True}, best=True)
    found = two.newest()
    assert (found.step, found.state, found.best) == (20, {"again": True}, True)
    assert names(two) == ["step-00000010", "step-00000020"]


def test_a_step_whose_second_save_failed_is_still_there(two, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "sha256_file", lambda path: "0" * 64)
        with pytest.raises(DiskFull):
            save(two, 20)
    assert two.newest().path.name == "step-00000020.replaced"
    save(two, 30)
    assert two.newest().step == 30


def test_what_cannot_be_deleted_is_told_and_the_save_stands(tmp_path, monkeypatch):
    checkpoints = run(tmp_path, keep=1)
    save(checkpoints, 10)

    def broken(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_module, "discard", broken)
    save(checkpoints, 20)
    assert checkpoints.left_over == ["step-00000010 could not be deleted: Permission denied"]
    assert checkpoints.newest().step == 20


def test_room_for_all_that_will_be_kept_is_asked_for_at_once(two, monkeypatch):
    path = two.folder / "step-00000020"
    two.require_room(path)
    monkeypatch.setattr(checkpoint_module, "free_bytes", lambda path: 100)
    with pytest.raises(DiskFull) as caught:
        two.require_room(path)
    assert "100 B free" in str(caught.value)
    assert "(6 of " in str(caught.value)
    assert "train.keep_checkpoints" in str(caught.value)


# --- a full disk ---


def test_a_size_limit_stops_the_save_with_need_and_free_and_leaves_the_old_one(two):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(file.stat().st_size for file in (two.folder / "step-00000020").iterdir())
    for limit in range(0, size, 16):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskFull) as caught:
                save(two, 30)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot write step-00000030: the file would pass the size limit (need " in str(caught.value)
        assert names(two) == ["step-00000010", "step-00000020"]
    save(two, 30)
    assert two.newest().step == 30
