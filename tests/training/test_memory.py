"""How much memory the process holds, as the system counts it."""

from __future__ import annotations

import subprocess
import sys

import torch

from topcoat.training.memory import free_leftovers, memory_bytes

GROWTH = """
import torch
from topcoat.training.memory import memory_bytes, peak_memory_bytes
cpu = torch.device("cpu")
before = memory_bytes(cpu)
held = torch.ones(16 * 2**20)  # 64 MiB, touched
print(before, memory_bytes(cpu), peak_memory_bytes(cpu), held.nbytes)
"""


def test_what_is_allocated_shows_and_the_peak_is_never_below():
    """In a process of its own: one that has lived a while may serve the request from what it has freed."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    before, after, peak, held = map(int, done.stdout.split())
    assert 0.8 * held < after - before < 1.5 * held
    assert peak >= before + 0.8 * held


def test_a_peak_is_the_process_own_and_not_that_of_whoever_started_it():
    held = torch.ones(2**28)  # 1 GiB, which is more than the child takes
    code = "import torch\nfrom topcoat.training.memory import *\nprint(peak_memory_bytes(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes


def test_freed_memory_goes_back_to_the_system():
    free_leftovers()
    before = memory_bytes(torch.device("cpu"))
    held = [torch.ones(2**18) for _ in range(200)]  # 1 MiB each
    assert memory_bytes(torch.device("cpu")) > before + 100 * 2**20
    held.clear()
    free_leftovers()
    assert memory_bytes(torch.device("cpu")) < before + 60 * 2**20
