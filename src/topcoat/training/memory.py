"""How much memory the process holds: resident bytes on a CPU, allocated bytes on a GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def memory_bytes(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return peak_memory_bytes(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most bytes in use since the process began (on a GPU: since the last reset of torch's statistics)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
