"""A checkpoint is whole or it is not used: what is saved comes back, and what was touched is found."""

import json
import os
import random
import resource
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.files import DiskFull
from topcoat.train import checkpoint as checkpoint_module
from topcoat.train.checkpoint import Checkpoints, save_with_patience
from topcoat.train.tensor_file import DTYPES, on_host, pieces

IDENTITY = {"base": "b4se", "config": "c0nf1g"}
STATE = {"next_step": 21, "loss": 0.1 + 0.2, "cursor": {"epoch": 1, "order": [3, 1, 2]}, "rng": 2**200}


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    adapter = {"q_proj.lora_A": torch.full((2, 3), float(step)), "q_proj.lora_B": torch.arange(6.0).reshape(3, 2)}
    moments = {"q_proj.lora_A.exp_avg": torch.full((2, 3), step / 7), "rng": torch.arange(5, dtype=torch.uint8)}
    return {"adapter": adapter, "optimizer": moments}


def run(folder: Path, keep: int = 5, run_id: str = "run-1", identity: dict[str, str] = IDENTITY) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep, run_id, identity)


def save(checkpoints: Checkpoints, step: int, *, best: bool = False) -> Path:
    return checkpoints.save(step, tensors(step), STATE | {"step": step}, best=best)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


@pytest.fixture
def two(tmp_path):
    """A run with checkpoints of step 10 and 20; the tests damage step 20."""
    checkpoints = run(tmp_path)
    save(checkpoints, 10)
    save(checkpoints, 20)
    return checkpoints


def falls_back(checkpoints: Checkpoints) -> str:
    """Step 20 is passed over for step 10; returns the reason."""
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10
    assert torch.equal(found.tensors["adapter"]["q_proj.lora_A"], tensors(10)["adapter"]["q_proj.lora_A"])
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("step-00000020")
    return found.skipped[0]


# --- what is saved comes back ---


def test_a_saved_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoints = run(tmp_path)
    path = save(checkpoints, 20, best=True)
    found = run(tmp_path).newest()
    assert path == checkpoints.folder / "step-00000020" == found.path
    assert (found.step, found.best, found.skipped) == (20, True, [])
    assert found.state == STATE | {"step": 20}
    for stem, part in tensors(20).items():
        assert found.tensors[stem].keys() == part.keys()
        assert all(torch.equal(found.tensors[stem][name], part[name]) for name in part)


@given(
    dtypes=st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=6),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=6, max_size=6),
    transposed=st.booleans(),
)
def test_the_library_reads_every_type_and_shape_that_is_written(dtypes, shapes, transposed):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for index, dtype in enumerate(dtypes):
        values = torch.randint(0, 2, shapes[index], generator=generator).to(dtype)
        made[f"layers.{index}.wéight"] = values.T if transposed and values.dim() == 2 else values
    read = safetensors.torch.load(b"".join(pieces(on_host(made))))
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())


def test_tensors_that_share_memory_and_nan_are_saved_as_they_are(tmp_path):
    one = torch.tensor([float("nan"), 1.0, -0.0])
    checkpoints = run(tmp_path)
    checkpoints.save(1, {"adapter": {"a": one, "b": one, "c": one[1:]}}, {}, best=False)
    found = checkpoints.newest().tensors["adapter"]
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


def test_what_was_read_does_not_change_when_the_file_does(two):
    found = two.newest()
    for file in found.path.iterdir():
        file.write_bytes(b"")
    assert torch.equal(found.tensors["adapter"]["q_proj.lora_A"], tensors(20)["adapter"]["q_proj.lora_A"])


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


# --- what was touched is found ---


def flip_and_cut(checkpoints: Checkpoints, seed: int, flips: int, cuts: int) -> None:
    draw = random.Random(seed)
    files = sorted((checkpoints.folder / "step-00000020").iterdir())
    for trial in range(flips + cuts):
        path = draw.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        if trial < flips:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        assert path.name in falls_back(checkpoints)
        path.write_bytes(original)
    assert checkpoints.newest().step == 20


def test_every_bit_flip_and_truncation_is_found(two):
    flip_and_cut(two, seed=7, flips=120, cuts=60)


@pytest.mark.slow
def test_every_single_bit_and_every_length_is_found(two):
    folder = two.folder / "step-00000020"
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for position in range(len(original)):
            for bit in range(8):
                damaged = bytearray(original)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                falls_back(two)
            path.write_bytes(original[:position])
            falls_back(two)
        path.write_bytes(original)


FILES = ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_deleted_file_is_found(two, name):
    (two.folder / "step-00000020" / name).unlink()
    assert f"{name} is missing" in falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_zeros_is_found(two, name):
    path = two.folder / "step-00000020" / name
    path.write_bytes(bytes(path.stat().st_size))
    assert name in falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_found(two, name):
    (two.folder / "step-00000020" / name).write_bytes(b"")
    assert name in falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_is_found(two, name):
    shutil.copy(two.folder / "step-00000010" / name, two.folder / "step-00000020" / name)
    if name == "manifest.json":
        assert "manifest.json is of step 10: the folder was renamed" in falls_back(two)
    else:
        assert name in falls_back(two)


def test_a_file_cut_to_another_length_is_told_with_both_sizes(two):
    path = two.folder / "step-00000020" / "state.json"
    size = path.stat().st_size
    os.truncate(path, 3)
    assert f"state.json has 3 bytes, {size} were saved" in falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_a_link_is_refused_though_its_bytes_are_right(two, name):
    path = two.folder / "step-00000020" / name
    path.rename(two.folder / "moved")
    path.symlink_to(two.folder / "moved")
    assert f"{name} is a symbolic link" in falls_back(two)


def test_a_checkpoint_that_is_a_link_is_refused(two):
    path = two.folder / "step-00000020"
    path.rename(two.folder / "moved")
    path.symlink_to(two.folder / "moved")
    assert "step-00000020 is a symbolic link" in falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_a_fifo_in_place_of_a_file_does_not_hang(two, name):
    path = two.folder / "step-00000020" / name
    path.unlink()
    os.mkfifo(path)
    assert f"{name} is not a regular file" in falls_back(two)


def test_a_file_too_many_is_found(two):
    (two.folder / "step-00000020" / "optimizer.pt").write_text("x")
    assert "optimizer.pt is not in the manifest" in falls_back(two)


def test_a_file_in_place_of_the_folder_is_found(two):
    shutil.rmtree(two.folder / "step-00000020")
    (two.folder / "step-00000020").write_text("x")
    assert "step-00000020 cannot be read: Not a directory" in falls_back(two)


def test_an_empty_folder_says_that_the_save_did_not_finish(two):
    shutil.rmtree(two.folder / "step-00000020")
    (two.folder / "step-00000020").mkdir()
    assert "manifest.json is missing: the save did not finish" in falls_back(two)


def test_a_renamed_checkpoint_is_found(two):
    (two.folder / "step-00000020").rename(two.folder / "step-00000099")
    found = two.newest()
    assert found.step == 10
    assert found.skipped == ["step-00000099 is not usable: manifest.json is of step 20: the folder was renamed"]


def as_other_user(work) -> bool:
    """Run `work` where file modes count, which for root is a forked child with another user id; True when it passed."""
    if os.geteuid() != 0:
        work()
        return True
    child = os.fork()
    if child == 0:
        os.seteuid(65534)
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", [*FILES, "."])
def test_a_file_or_folder_that_may_not_be_read_is_passed_over(two, monkeypatch, name):
    monkeypatch.chdir(two.folder.parent)
    two.folder.parent.chmod(0o755)
    (two.folder / "step-00000020" / name).chmod(0)

    def work():
        reason = falls_back(Checkpoints(Path("checkpoints"), 5, "run-1", IDENTITY))
        assert "cannot be read: Permission denied" in reason

    try:
        assert as_other_user(work)
    finally:
        (two.folder / "step-00000020" / name).chmod(0o755)


def test_when_nothing_is_good_every_reason_is_told(two):
    for path in two.folder.iterdir():
        (path / "state.json").unlink()
    assert two.newest() is None
    assert [line[:13] for line in two.skipped] == ["step-00000020", "step-00000010"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "manifest.json is not a JSON object"),
        ("{", "manifest.json is not valid JSON"),
        ("[" * 100_000, "manifest.json is not valid JSON"),
        ("\ud800", "manifest.json is not valid JSON"),
        ('{"format": "topcoat-checkpoint", "version": 2}', "manifest.json has format version 2, this Topcoat reads 1"),
        ('{"format": "other"}', "manifest.json does not describe a checkpoint"),
        ("{}" + " " * 2**20, "bytes: no manifest is that large"),
    ],
)
def test_a_manifest_that_is_none_is_told_as_such(two, text, reason):
    (two.folder / "step-00000020" / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    assert reason in falls_back(two)


def test_a_manifest_that_is_right_about_a_file_that_is_no_tensor_file_is_passed_over(two, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "pieces", lambda part: [b"not a tensor file"])
    monkeypatch.setattr(checkpoint_module, "missing_or_changed", lambda path, part: [])
    save(two, 20)
    assert "adapter.safetensors cannot be parsed" in falls_back(two)


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
    assert now.newest(accept={"base", "data"}).step == 20


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


def full(need: int = 5) -> DiskFull:
    return DiskFull("cannot write: full", "run", "free space", need=need, free=1, errno=28)


def test_a_full_disk_pauses_until_there_is_room():
    outcomes = [full(), full(), "saved"]
    told, slept = [], []

    def attempt():
        outcome = outcomes.pop(0)
        if isinstance(outcome, DiskFull):
            raise outcome
        return outcome

    assert save_with_patience(attempt, told.append, lambda: False, sleep=slept.append) == "saved"
    assert len(told) == 2
    assert "cannot write: full" in str(told[0])
    assert "free space. Training is paused and goes on by itself once there is room; Ctrl-C stops it" in str(told[0])
    assert sum(slept) == pytest.approx(1 + 2, abs=0.5)


def test_pauses_grow_to_a_minute():
    slept = []
    outcomes = [True] * 12

    def attempt():
        if outcomes.pop(0) and outcomes:
            raise full()

    save_with_patience(attempt, lambda error: slept.append(0.0), lambda: False, sleep=lambda s: add(slept, s))
    assert slept[:3] == pytest.approx([1, 2, 4], abs=0.3)
    assert max(slept) == pytest.approx(60, abs=0.3)


def add(numbers: list[float], more: float) -> None:
    numbers[-1] += more


def test_a_stop_while_waiting_tries_once_more_and_then_gives_up():
    tries, told = [], []

    def attempt():
        tries.append(1)
        raise full()

    with pytest.raises(DiskFull):
        save_with_patience(attempt, told.append, lambda: True, sleep=lambda s: pytest.fail("slept"))
    assert (len(tries), len(told)) == (2, 1)


def test_what_waiting_does_not_cure_is_raised_at_once():
    def attempt():
        raise TopcoatError("permission is denied")

    with pytest.raises(TopcoatError, match="permission is denied"):
        save_with_patience(attempt, lambda error: pytest.fail("waited"), lambda: False)
