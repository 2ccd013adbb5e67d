"""What this machine's CPU reaches, measured once and kept in the cache folder: one long product, one long copy, and
what a small operation costs whatever its size.

The product is (2048, 1024) @ (1024, 4096), the shape of a micro batch through an MLP, in bf16 where the chip has it and
in fp32, of random numbers: on equal ones tiles draw less power and run up to twice as fast. Of several tries the best
counts: a machine that is busy at the moment would look slower than it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from topcoat.errors import TopcoatError
from topcoat.files import make_folder, write_file
from topcoat.json_files import read_json_object
from topcoat.planning.devices import Device
from topcoat.planning.machine import Machine

VERSION = 3
TRIES = 4
CALLS = 2000  # small operations, timed together


@dataclass(frozen=True)
class Reached:
    """Operations and bytes a second."""

    flops_16bit: float
    flops_fp32: float
    bandwidth: float
    call_seconds: float
    """Of one addition to eight numbers, called from Python."""


def cpu_device(facts: Machine, cache: Path, say: Callable[[str], None] = lambda text: None) -> Device:
    """This machine as a device: its memory, and what it was measured to reach, now or earlier."""
    reached = _stored(_file(facts, cache))
    if reached is None:
        say("measuring this CPU once: a product, a copy and small calls")
        reached = measure(bf16="bf16" in " ".join(facts.cpu_features))
        try:
            make_folder(_file(facts, cache).parent)
            write_file(_file(facts, cache), json.dumps({"version": VERSION, **reached.__dict__}) + "\n")
        except (OSError, TopcoatError):
            say(f"the cache folder {cache} cannot be written: the figures are measured again next time")
    return Device(
        name="cpu",
        says=f"{facts.cpu}, {facts.usable_cores} cores",
        memory_bytes=facts.memory_limit_bytes or facts.memory_bytes or 0,
        peak_bandwidth=reached.bandwidth,
        peak_flops=reached.flops_16bit,
        peak_flops_fp32=reached.flops_fp32,
        watts=0,
        source="measured on this machine",
        use_flops=1.0,
        use_bandwidth=1.0,
        bf16="bf16" in " ".join(facts.cpu_features),
        workspace_bytes=0,
        kind="cpu",
        call_seconds=reached.call_seconds,
        tiles="amx_bf16" in facts.cpu_features,
        measured=True,
    )


def measure(bf16: bool) -> Reached:
    """Measure now; takes about a second."""
    import torch

    def product(dtype: torch.dtype) -> float:
        x, w = (torch.randn(*shape, generator=random).to(dtype) for shape in ((2048, 1024), (1024, 4096)))
        out = torch.empty(2048, 4096, dtype=dtype)
        return 2 * 2048 * 1024 * 4096 / _best(lambda: torch.mm(x, w, out=out))

    def calls() -> None:
        for _ in range(CALLS):
            few.add_(1)

    random = torch.Generator().manual_seed(0)
    few = torch.ones(8)
    source = torch.ones(2**24)  # 64 MiB: above every cache
    target = torch.empty_like(source)
    fp32 = product(torch.float32)
    return Reached(
        flops_16bit=product(torch.bfloat16) if bf16 else fp32,
        flops_fp32=fp32,
        bandwidth=2 * source.nbytes / _best(lambda: target.copy_(source)),
        call_seconds=_best(calls) / CALLS,
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several tries, the first of which warms up."""
    times = []
    for _ in range(TRIES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(1e-9, min(times[1:]))


def cpu_key(facts: Machine) -> str:
    """Names this machine: another CPU, number of cores or threads, or torch is another machine."""
    threads = os.environ.get("OMP_NUM_THREADS") or facts.usable_cores  # as a run sets it (`cli/process.py`)
    key = f"{facts.cpu} {facts.usable_cores} {threads} {' '.join(facts.cpu_features)} {facts.versions.get('torch')}"
    return f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _file(facts: Machine, cache: Path) -> Path:
    return cache / "calibration" / f"{cpu_key(facts)}.json"


def _stored(file: Path) -> Reached | None:
    """What was measured earlier; None where nothing usable was kept."""
    if not file.is_file():
        return None
    try:
        found = read_json_object(file, "")
    except TopcoatError:
        return None
    numbers = [found.get(name) for name in ("flops_16bit", "flops_fp32", "bandwidth", "call_seconds")]
    if found.get("version") != VERSION or not all(isinstance(n, int | float) and n > 0 for n in numbers):
        return None
    return Reached(*(float(n) for n in numbers if n is not None))
