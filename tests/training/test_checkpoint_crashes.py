"""Every call of a save, failed or killed: a good checkpoint stays, and the next save works.

The scene is always the same: a run that keeps one checkpoint has step 10 and saves step 20, so one save writes,
publishes and deletes. An injected layer counts the system calls; strace does the same from outside, so that the layer
itself is checked. The power-loss model records the calls and builds what a disk may hold that lost unsynced ones.
"""

import ctypes
import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_save import CALLS, assert_goes_on, assert_whole, run, save

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.training.checkpoint import Checkpoints
from topcoat.training.patience import save_with_patience


@pytest.fixture
def begin(tmp_path):
    """Makes a run that has step 10, in a new folder each time."""
    count = 0

    def make(step: int = 10) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        save(run(folder), step)
        return folder

    return make


def patch_calls(patch: Callable[[str, Any], None], act: Callable[[str, Callable[..., Any], tuple, dict], Any]) -> None:
    """Every call in CALLS goes through `act(name, real, args, kwargs)`; plain reads do not count."""

    def through(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: act(name, real, args, kwargs)

    for name in CALLS:
        patch(name, through(name, getattr(os, name)))


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child (torch is imported already); its status as waitstatus_to_exitcode tells it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- killed ---


def killed_at(n: int, folder: Path, step: int, half: bool) -> bool:
    """Save in a child that dies at its n-th call (with `half`, a write gets half its bytes out); False if it lived."""

    def work() -> None:
        count = 0

        def act(name: str, real: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
            nonlocal count
            count += 1
            if count == n:
                if half and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        checkpoints = run(folder)
        patch_calls(lambda name, new: setattr(os, name, new), act)
        save(checkpoints, step, seed=1)

    status = in_child(work)
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize(("step", "half"), [(20, False), (20, True), (10, False)], ids=["new", "half", "again"])
def test_a_kill_at_any_call_of_a_save_leaves_a_good_checkpoint(begin, step, half):
    n, seen = 1, []
    while True:
        folder = begin()
        if not killed_at(n, folder, step, half):
            break
        seen.append(assert_whole(run(folder), 10, step))
        assert_goes_on(folder)
        n += 1
    assert n > 30, "a save makes more calls than that: the layer is not in place"
    assert seen == sorted(seen)  # once the new one is there it stays
    assert {10, step} == set(seen)


def test_a_kill_during_the_first_save_leaves_an_empty_start(tmp_path):
    n = 1
    while killed_at(n, tmp_path / str(n), 20, False):
        assert run(tmp_path / str(n)).newest() is None or assert_whole(run(tmp_path / str(n)), 20)
        assert_goes_on(tmp_path / str(n))
        n += 1
    assert n > 20


def test_a_run_killed_25_times_needs_no_more_room_than_one_kill(begin):
    folder = begin()
    draw = random.Random(11)
    for _ in range(25):
        killed_at(draw.randrange(1, 45), folder, 20, True)
        assert_whole(run(folder), 10, 20)
        assert len(list((folder / "checkpoints").iterdir())) <= 4
    assert_goes_on(folder)


STRACED = ["rename", "fsync", "openat", "mkdir", "fallocate", "write", "fchmod", "unlinkat", "rmdir", "unlink"]


def straced(folder: Path, inject: str, log: Path) -> int:
    """Save in a child that strace interferes with; its exit status."""
    go, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go, 1)
        try:
            save(run(folder), 20)
        except DiskFull:
            os._exit(3)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    name = inject.split(":")[0]
    command = ["strace", "-f", "-p", str(child), "-o", str(log), "-e", f"trace={name}", "-e", f"inject={inject}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = tracer.stderr.readline()
    os.write(ready, b"x")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tracer.stderr.close()
    tracer.wait()
    for descriptor in (go, ready):
        os.close(descriptor)
    if "attached" not in said:
        pytest.skip(f"strace cannot attach here: {said.strip()}")
    return status


def strace_every(begin, tmp_path, calls: list[str], action: str, ended: int) -> int:
    """Interfere with the n-th of each call until the save ends without; returns how many times that was."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    points = 0
    for name in calls:
        n = 1
        while True:
            folder = begin()
            status = straced(folder, f"{name}:{action}:when={n}", tmp_path / "trace")
            if "INJECTED" not in (tmp_path / "trace").read_text() and status == 0:
                break
            assert status in (ended, 0)
            assert_whole(run(folder), 10, 20)
            assert_goes_on(folder)
            n += 1
            points += 1
    return points


def test_a_kill_from_outside_at_any_rename_or_fsync_leaves_a_good_checkpoint(begin, tmp_path):
    assert strace_every(begin, tmp_path, ["rename", "fsync"], "signal=KILL", -signal.SIGKILL) >= 8


@pytest.mark.slow
def test_a_kill_from_outside_at_any_call_leaves_a_good_checkpoint(begin, tmp_path):
    assert strace_every(begin, tmp_path, STRACED, "signal=KILL", -signal.SIGKILL) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_an_error_from_outside_at_any_call_is_a_full_disk_or_harmless(begin, tmp_path, error):
    calls = ["rename", "fsync", "mkdir", "fallocate", "write", "fchmod", "unlinkat", "rmdir"]
    assert strace_every(begin, tmp_path, calls, f"error={error}", 3) >= 20


# --- failed ---


def what_save_says(checkpoints: Checkpoints) -> str | None:
    """The message of a save that the disk did not take; None when it was done. Any other error is let through."""
    try:
        save(checkpoints, 20)
    except DiskFull as error:
        return str(error)
    return None


def fail_at(begin, monkeypatch, number: int, forever: bool) -> int:
    """Save with the n-th call failing, for every n; returns how many there were."""
    n = 1
    while True:
        folder = begin()
        checkpoints = run(folder)
        count = 0

        def act(name, real, args, kwargs, n=n):
            nonlocal count
            count += 1
            if count == n or (forever and count > n):
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch_calls(lambda name, new, patch=patch: patch.setattr(os, name, new), act)
            told = what_save_says(checkpoints)
        assert told is None or ("cannot write step-00000020: " in told and "need " in told)
        assert_whole(run(folder), *([20] if told is None else [10, 20]))
        if count < n:
            return n - 1
        assert save_with_patience(lambda c=checkpoints: save(c, 20), print, lambda: False).is_dir()
        assert_goes_on(folder)
        n += 1


@pytest.mark.parametrize(("number", "forever"), [(errno.ENOSPC, False), (errno.EIO, True)], ids=["ENOSPC", "EIO ever"])
def test_an_error_at_any_call_leaves_a_good_checkpoint_and_the_save_can_be_repeated(
    begin, monkeypatch, number, forever
):
    assert fail_at(begin, monkeypatch, number, forever) > 30


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE"])
def test_every_disk_error_at_any_call_leaves_a_good_checkpoint(begin, monkeypatch, name, forever):
    assert fail_at(begin, monkeypatch, getattr(errno, name), forever) > 30


# --- full ---


def mount_small_disk(folder: Path, size: int) -> bool:
    """Mount a tmpfs of `size` bytes on `folder`, seen by this process only; False where the system forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts, private = 0x10000000, 0x00020000, 0x40000 | 0x4000
    user, group = os.getuid(), os.getgid()
    if libc.unshare(new_user | new_mounts) != 0:
        return False
    for name, text in [("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")]:
        Path(f"/proc/self/{name}").write_text(text)
    libc.mount(b"none", b"/", None, private, None)
    return libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0


def test_a_really_full_disk_pauses_the_run_until_room_is_made(tmp_path):
    """Each checkpoint needs 4 files of one page and more; beside a filler the second does not fit."""
    page = os.sysconf("SC_PAGE_SIZE")

    def work() -> None:
        if not mount_small_disk(tmp_path, 16 * page):
            os._exit(7)
        save(run(tmp_path), 10)
        filler = tmp_path / "filler"
        filler.write_bytes(bytes(9 * page))
        told = []

        def make_room(error: TopcoatError) -> None:
            told.append(str(error))
            names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
            assert names == ["step-00000010"], names
            assert_whole(run(tmp_path), 10)
            filler.unlink()

        save_with_patience(lambda: save(run(tmp_path), 20), make_room, lambda: False, sleep=lambda s: None)
        assert len(told) == 1
        assert "cannot write step-00000020: no space is left on the disk (need " in told[0], told
        assert f"{3 * page // 1024}.0 KiB free" in told[0], told
        assert "Training is paused" in told[0]
        assert assert_whole(run(tmp_path), 20)

    status = in_child(work)
    if status == 7:
        pytest.skip("user namespaces are off: no small disk to fill")
    assert status == 0
