"""Randomness of training as a pure function of (seed, step, micro batch): nothing to save, nothing to restore.

Dropout draws from torch's global generator, so it is seeded before each micro batch; outside the loop the generator is
as it was found. A resumed run draws what the uninterrupted one would have drawn (pitfall P33).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def private_randomness() -> Iterator[None]:
    """Inside, seeding torch's generators leaves no trace outside."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def seed_micro_batch(seed: int, step: int, micro: int) -> None:
    """Set torch's generators for micro batch `micro` of optimizer step `step`."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
