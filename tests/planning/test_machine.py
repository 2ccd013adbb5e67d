"""The machine's facts, against the system's own files and against made-up control groups."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from topcoat.planning.machine import (
    Gpu,
    available_memory_bytes,
    cgroup_cpu_quota,
    cgroup_memory_limit,
    cpu_features,
    installed,
    machine,
    usable_cores,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """A made-up /sys/fs/cgroup and /proc/self/cgroup."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root, root / "self"


def test_a_v2_group_and_those_above_it_limit(tmp_path):
    root, me = write(
        tmp_path,
        {"self": "0::/a/b", "a/memory.max": str(2**30), "a/b/memory.max": "max", "a/cpu.max": "150000 100000"},
    )
    assert cgroup_memory_limit(root, me) == 2**30
    assert cgroup_cpu_quota(root, me) == 1.5


def test_a_v1_group_limits(tmp_path):
    files = {
        "self": "4:memory:/x\n3:cpu,cpuacct:/x\n0::/",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/x/memory.limit_in_bytes": "4096000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/x/cpu.cfs_quota_us": "50000",
        "cpu/x/cpu.cfs_period_us": "100000",
    }
    root, me = write(tmp_path, files)
    assert cgroup_memory_limit(root, me) == 4096000
    assert cgroup_cpu_quota(root, me) == 0.5


@pytest.mark.parametrize("text", ["max 100000", "-1 100000", "junk", ""])
def test_no_limit_is_none(tmp_path, text):
    root, me = write(tmp_path, {"self": "0::/", "cpu.max": text, "memory.max": "max"})
    assert cgroup_cpu_quota(root, me) is None
    assert cgroup_memory_limit(root, me) is None
    assert cgroup_memory_limit(tmp_path / "none", tmp_path / "none") is None


def test_features_are_those_of_the_chip(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 avx512f amx_bf16\n\nprocessor\t: 1\nflags: none\n"
    )
    assert cpu_features(info) == ("avx2", "avx512f", "amx_bf16")
    info.write_text("Features\t: fp asimd bf16 sve\n")
    assert cpu_features(info) == ("bf16", "sve")
    assert cpu_features(tmp_path / "none") == ()


def test_the_facts_are_those_of_this_machine(tmp_path):
    facts = machine(tmp_path / "not" / "there")
    assert facts.cores == len(os.sched_getaffinity(0))
    assert 1 <= facts.usable_cores <= facts.physical_cores <= facts.cores
    assert facts.usable_cores == usable_cores()
    assert facts.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < facts.available_bytes <= facts.memory_bytes
    assert available_memory_bytes() == pytest.approx(facts.available_bytes, rel=0.5)
    assert facts.versions["torch"] == installed("torch") == torch.__version__
    assert facts.torch_threads == torch.get_num_threads()
    assert len(facts.gpus) == torch.cuda.device_count()
    assert facts.compute_dtype in ("bf16", "fp32")
    json.dumps(facts.as_json(), allow_nan=False)


def test_one_line_says_the_machine():
    facts = dataclasses.replace(
        machine(ask_torch=False),
        usable_cores=2,
        cpu="Intel",
        cpu_features=("avx2", "avx512f", "amx_bf16"),
        memory_bytes=8 * 2**30,
        memory_limit_bytes=4 * 2**30,
        available_bytes=3 * 2**30,
        versions={"torch": "2.13.0"},
    )
    assert facts.one_line() == "2 cores (Intel; avx512f, amx_bf16), 3.0 GiB of 4.0 GiB free, no GPU, torch 2.13.0"
    gpu = dataclasses.replace(facts, cpu_features=(), available_bytes=None, gpus=(Gpu("H100", 1, 1, "9.0"),))
    assert gpu.one_line() == "2 cores (Intel), memory unknown, H100, torch 2.13.0"


def test_no_torch_is_imported_unless_it_is_asked():
    code = "import sys; from topcoat.planning.machine import machine; machine(ask_torch=False); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
