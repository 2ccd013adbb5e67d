"""How much memory the process holds, as the system counts it."""

from __future__ import annotations

import torch

from topcoat.training.memory import memory_bytes, peak_memory_bytes

CPU = torch.device("cpu")


def test_what_is_allocated_shows_and_the_peak_is_never_below():
    before = memory_bytes(CPU)
    held = torch.ones(16 * 2**20)  # 64 MiB, touched
    grown = memory_bytes(CPU) - before
    assert 0.8 * held.nbytes < grown < 1.5 * held.nbytes
    assert peak_memory_bytes(CPU) >= before + 0.8 * held.nbytes
