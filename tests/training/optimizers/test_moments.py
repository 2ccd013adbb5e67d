"""Moments in a file: as many bytes as were asked for are taken at once, and no more than a slice is in memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.training.optimizers import moments as module
from topcoat.training.optimizers.moments import FileMoments


@pytest.fixture
def disk():
    """A folder on a disk: what lies in /dev/shm is memory anyway."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def test_what_was_written_is_there_after_it_was_let_go_of(tmp_path):
    moments = FileMoments(3 * 2**20, tmp_path)
    moments.first.copy_(torch.arange(3 * 2**20))
    moments.second.fill_(2.5)
    moments.release()
    assert torch.equal(moments.first, torch.arange(3 * 2**20, dtype=torch.float32))
    assert bool((moments.second == 2.5).all())
    moments.first[-1] = 7.0
    moments.release()
    assert float(moments.first[-1]) == 7.0


def test_the_room_is_taken_when_it_is_made_and_given_back_when_it_goes(tmp_path):
    """The file has no name, so nothing is left behind however the process ends."""
    before = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    moments = FileMoments(16 * 2**20, tmp_path)
    during = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert before - during > 100 * 2**20  # 128 MiB, less what others on the machine gave back meanwhile
    assert os.listdir(tmp_path) == []
    del moments
    after = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert after - during > 100 * 2**20


def test_two_in_one_folder_do_not_meet(tmp_path):
    one, two = FileMoments(64, tmp_path), FileMoments(64, tmp_path)
    one.first.fill_(1.0)
    assert not bool(two.first.any())


def test_a_disk_without_room_says_need_and_free_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull) as caught:
        FileMoments(2**20, tmp_path)
    text = str(caught.value)
    assert "cannot write optimizer moments: no space is left on the disk (need 8.0 MiB" in text
    assert str(tmp_path) in text
    assert "train.optimizer_folder names the folder" in text
    assert caught.value.need == 8 * 2**20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_refuses_the_room_says_so(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DiskFull, match="cannot write optimizer moments") as caught:
        FileMoments(2**20, tmp_path)
    assert caught.value.errno == number
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_gets_zeros_written(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    moments = FileMoments(3 * 2**20 + 16, tmp_path)
    assert not bool(moments.first.any())
    assert not bool(moments.second.any())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TopcoatError) as caught:
        FileMoments(64, tmp_path / "nowhere")
    assert "cannot write optimizer moments: the folder is not there" in str(caught.value)
    assert str(tmp_path / "nowhere") in str(caught.value)


RESIDENT = """
import sys
from pathlib import Path
import torch
from torch import nn
from topcoat.training.checkpoint import Checkpoints
from topcoat.training.memory import memory_bytes
from topcoat.training.optimizers.choices import make_optimizer
from topcoat.training.settings import TrainSettings

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = Path(sys.argv[1])
warm = {"w": nn.Parameter(torch.zeros(8, 8))}  # what is loaded once, at the first step, is no moment
warm["w"].sum().backward()
make_optimizer(warm, TrainSettings(), folder=folder).step(1e-3)
n = int(sys.argv[2]) * 2**20 // 8
parameters = {"w": nn.Parameter(torch.zeros(n // 1024, 1024))}
parameters["w"].grad = torch.ones(n // 1024, 1024)
optimizer = make_optimizer(parameters, TrainSettings(optimizer="paged_adamw"), folder=folder, flat=False)
checkpoints = Checkpoints(folder / "checkpoints", 1, "run", {})


def grown(work):
    before = memory_bytes(torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    work()
    return peak() - before

print("step", grown(lambda: optimizer.step(1e-3)))
state = optimizer.state()
save = lambda: checkpoints.save(1, {"optimizer": state}, {}, best=False, after_chunk=optimizer.release)
print("save", grown(save))
checkpoint = checkpoints.newest()
for tensor in state.values():
    tensor[:1].zero_()
print("resume", grown(lambda: checkpoint.read("optimizer", state, optimizer.release)))
assert float(state["w.exp_avg"][0, 0]) == float(state["w.exp_avg"][-1, -1]) > 0.09
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("mib", [160, pytest.param(400, marks=pytest.mark.slow)])
def test_a_step_a_save_and_a_resume_hold_a_slice_of_the_moments_in_memory(disk, mib):
    """160 or 400 MiB of moments: stepped, saved and read back with less than 80 MB beside the parameters."""
    command = [sys.executable, "-c", RESIDENT, disk, str(mib)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of a process cannot be reset here")
    assert done.returncode == 0, done.stderr
    grown = {phase: int(size) for phase, size in (line.split() for line in done.stdout.splitlines())}
    assert grown.keys() == {"step", "save", "resume"}
    assert max(grown.values()) < 80e6, grown
