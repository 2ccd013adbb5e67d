"""The machine: cores, memory, disk, chip features, GPUs and versions, as facts. Read from the system without torch,
save for what only torch knows (GPUs, the dtype to compute in, its threads).

A container's limits count: cgroup v2 `memory.max` and `cpu.max`, cgroup v1 `memory.limit_in_bytes` and
`cpu.cfs_quota_us`, at this process's group and every one above it.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from topcoat.units import show_bytes

LIBRARIES = (
    *("topcoat", "torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "pydantic", "peft"),
    *("bitsandbytes", "triton", "tensorboard", "wandb"),
)
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "bf16", "sve")
NO_LIMIT = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str


@dataclass(frozen=True)
class Machine:
    """Facts of one machine at one moment. None stands for what the system does not tell."""

    system: str
    architecture: str
    cpu: str
    cores: int
    """Logical cores this process may run on."""
    physical_cores: int
    """Whole cores among them: two hardware threads share one."""
    usable_cores: int
    """Whole cores within the container's quota: how many threads compute well."""
    cpu_features: tuple[str, ...]
    memory_bytes: int | None
    memory_limit_bytes: int | None
    """The container's limit, if it has one below the machine's memory."""
    available_bytes: int | None
    """What can be taken now without swapping, within the limit."""
    disk_free_bytes: int
    python: str
    versions: dict[str, str | None]
    gpus: tuple[Gpu, ...] = ()
    device: str | None = None
    """Where device: auto computes. None where torch was not asked or is absent, as for the next two."""
    compute_dtype: str | None = None
    """The dtype that compute_dtype: auto picks: bf16 where it is native, else fp32."""
    torch_threads: int | None = None

    def as_json(self) -> dict[str, Any]:
        """All facts as plain values."""
        return asdict(self)

    def one_line(self) -> str:
        """For headers: "2 cores (Intel Xeon; avx512f, amx_bf16), 5.1 GiB of 7.8 GiB free, no GPU, torch 2.13.0"."""
        features = ", ".join(name for name in self.cpu_features if name in ("avx512f", "amx_bf16", "sve"))
        memory = "memory unknown"
        if self.available_bytes is not None and self.memory_bytes is not None:
            total = min(self.memory_bytes, self.memory_limit_bytes or self.memory_bytes)
            memory = f"{show_bytes(self.available_bytes)} of {show_bytes(total)} free"
        gpus = ", ".join(gpu.name for gpu in self.gpus) or "no GPU"
        chip = f"{self.cpu}; {features}" if features else self.cpu
        return f"{self.usable_cores} cores ({chip}), {memory}, {gpus}, torch {self.versions.get('torch')}"


def machine(folder: Path = Path("."), *, ask_torch: bool = True) -> Machine:
    """The facts of this machine, with the free disk at `folder`. ask_torch=False imports no torch and knows no GPU."""
    logical, physical = _cores()
    total, limit = _memory_bytes(), cgroup_memory_limit()
    asked = _ask_torch() if ask_torch and installed("torch") else {}
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=_cpu_info().get("model name", platform.processor() or platform.machine()),
        cores=logical,
        physical_cores=physical,
        usable_cores=usable_cores(),
        cpu_features=cpu_features(),
        memory_bytes=total,
        memory_limit_bytes=limit if limit and total and limit < total else None,
        available_bytes=available_memory_bytes(),
        disk_free_bytes=shutil.disk_usage(folder if folder.exists() else Path(".")).free,
        python=platform.python_version(),
        versions={name: installed(name) for name in LIBRARIES},
        **asked,
    )


def installed(name: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Whole cores this process may use: affinity, hardware threads and the container's quota taken into account."""
    quota = cgroup_cpu_quota()
    physical = _cores()[1]
    return max(1, min(physical, math.ceil(quota))) if quota else physical


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The instruction sets of FEATURES that the chip has; empty where the system does not list them."""
    info = _cpu_info(cpuinfo)
    flags = set(info.get("flags", info.get("Features", "")).split())
    return tuple(name for name in FEATURES if name in flags)


def available_memory_bytes() -> int | None:
    """Memory that can be taken now without swapping, within the container's limit; None where it is not told."""
    if sys.platform == "linux":
        free: int | None = _meminfo().get("MemAvailable")
    else:
        free = _sysconf_bytes("SC_AVPHYS_PAGES")
    limit, used = cgroup_memory_limit(), _cgroup_memory_used()
    if limit is not None and used is not None:
        inside = max(0, limit - used)
        free = inside if free is None else min(free, inside)
    return free


def cgroup_memory_limit(root: Path = Path("/sys/fs/cgroup"), me: Path = Path("/proc/self/cgroup")) -> int | None:
    """The smallest memory limit of this process's control groups, or None."""
    found = [
        int(text)
        for name, folder in _groups(root, me, "memory")
        if (text := _read(folder / name)).isdigit() and int(text) < NO_LIMIT
    ]
    return min(found, default=None)


def cgroup_cpu_quota(root: Path = Path("/sys/fs/cgroup"), me: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest quota of this process's control groups, in cores, or None."""
    found = []
    for name, folder in _groups(root, me, "cpu"):
        text = _read(folder / name).split()
        if name == "cpu.cfs_quota_us":
            text += _read(folder / "cpu.cfs_period_us").split()
        if len(text) == 2 and text[0].isdigit() and int(text[1]) > 0:
            found.append(int(text[0]) / int(text[1]))
    return min(found, default=None)


def _groups(root: Path, me: Path, controller: str) -> list[tuple[str, Path]]:
    """(limit file, folder) of this process's group and all above it, in cgroup v2 and v1."""
    names = {"memory": ("memory.max", "memory.limit_in_bytes"), "cpu": ("cpu.max", "cpu.cfs_quota_us")}[controller]
    found = []
    for line in _read(me).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base, name = (root / controller, names[1]) if controllers else (root, names[0])
        parts = Path(group.lstrip("/")).parts
        found += [(name, base.joinpath(*parts[:n])) for n in range(len(parts), -1, -1)]
    return found


def _cgroup_memory_used(root: Path = Path("/sys/fs/cgroup"), me: Path = Path("/proc/self/cgroup")) -> int | None:
    """Memory the limited group holds, file cache that can be dropped left out."""
    limit = cgroup_memory_limit(root, me)
    for name, folder in _groups(root, me, "memory"):
        if _read(folder / name) == str(limit):
            used = _read(folder / ("memory.current" if name == "memory.max" else "memory.usage_in_bytes"))
            cache = [line.split()[1] for line in _read(folder / "memory.stat").splitlines() if "inactive_file" in line]
            return int(used) - int(cache[0] if cache else 0) if used.isdigit() else None
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not this system, or not for us to read
        return ""


def _cpu_info(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The lines of the first processor."""
    first = _read(path).split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _meminfo(path: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    pairs = (line.split(":", 1) for line in _read(path).splitlines() if ":" in line)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.split()}


def _memory_bytes() -> int | None:
    return _meminfo().get("MemTotal") if sys.platform == "linux" else _sysconf_bytes("SC_PHYS_PAGES")


def _sysconf_bytes(pages: str) -> int | None:
    if sys.platform == "win32" or pages not in os.sysconf_names:
        return None
    return int(os.sysconf(pages)) * int(os.sysconf("SC_PAGE_SIZE"))


def _cores() -> tuple[int, int]:
    """(logical, whole) cores this process may run on."""
    if sys.platform != "linux":
        count = os.cpu_count() or 1
        return count, count
    ids = os.sched_getaffinity(0)
    siblings = {_read(Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list")) or str(i) for i in ids}
    return len(ids), len(siblings)


def _ask_torch() -> dict[str, Any]:
    """GPUs, device, dtype and threads, by the same functions that a run uses."""
    import torch

    from topcoat.model.load import resolve_compute_dtype, resolve_device

    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(facts.name, total, free, f"{facts.major}.{facts.minor}"))
    device = resolve_device("auto")
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_compute_dtype("auto", device)]
    return {
        "gpus": tuple(gpus),
        "device": str(device),
        "compute_dtype": dtype,
        "torch_threads": torch.get_num_threads(),
    }
