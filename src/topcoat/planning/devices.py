"""Devices a plan can be made for: memory, bandwidth and arithmetic, from their makers' data sheets.

`peak_*` are the makers' dense figures (no sparsity), `use_*` the share of them that long products and copies reach. The
shares of H100, H200, A100, L40S and RTX 4090 are those of public measurements; for the others 0.65 and 0.78, in the
middle of these, are taken, and the answer says so. No figure here was measured by this project.

`memory_bytes` is what CUDA gives a process, as PyTorch's out-of-memory messages name it ("a total capacity of 79.10
GiB" on an H100), and less than the data sheet says: where error correction is on, as on servers' cards with GDDR6 (T4,
A10, L4, L40S), it keeps a sixteenth, and the driver keeps a few hundred MiB of any card. What it reports before its own
share, for the servers' cards: https://github.com/modal-labs/modal-client/pull/2797.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from topcoat.errors import TopcoatError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One kind of device."""

    name: str
    says: str
    memory_bytes: int
    peak_bandwidth: float
    """Bytes a second."""
    peak_flops: float
    """Floating point operations a second in bf16, or in fp16 where `bf16` is False."""
    peak_flops_fp32: float
    watts: int
    source: str
    use_flops: float = 0.65
    use_bandwidth: float = 0.78
    bf16: bool = True
    workspace_bytes: int = 8_519_680
    """cuBLAS's workspace of a handle and stream: 8.125 MiB, 32 MiB on Hopper."""
    kind: str = "cuda"
    call_seconds: float = 0.0
    """What one small operation costs beside its arithmetic; 0 where it was not measured."""
    tiles: bool = False
    """A CPU with AMX, on which the hand-written blocks multiply in code of ours."""
    measured: bool = False
    """The figures are this machine's own."""

    def flops(self, element_bytes: int) -> float:
        """Operations a second that long products reach."""
        return self.use_flops * (self.peak_flops if element_bytes == 2 else self.peak_flops_fp32)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that long copies reach."""
        return self.use_bandwidth * self.peak_bandwidth


_NVIDIA = "https://www.nvidia.com/en-us/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
_BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_A10G = "https://www.baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference/"
_HOPPER = {"workspace_bytes": 32 * 2**20}


def _gpu(
    name: str,
    says: str,
    gib: float,
    gb_s: float,
    teraflops: float,
    fp32: float,
    watts: int,
    source: str,
    **more: object,
) -> Device:
    return Device(
        name,
        says,
        int(gib * GIB),
        gb_s * 1e9,
        teraflops * 1e12,
        fp32 * 1e12,
        watts,
        source,
        **more,  # type: ignore[arg-type]
    )


# Consumer cards: dense bf16 with fp32 accumulation, as training does it.
DEVICES: tuple[Device, ...] = (
    _gpu("rtx3060", "GeForce RTX 3060 12 GB", 11.7, 360, 25.5, 12.7, 170, _AMPERE),
    _gpu("rtx3090", "GeForce RTX 3090", 23.5, 936, 71, 35.6, 350, _AMPERE),
    _gpu("rtx4060ti", "GeForce RTX 4060 Ti 16 GB", 15.5, 288, 44, 22.1, 165, _ADA),
    _gpu("rtx4070", "GeForce RTX 4070", 11.7, 504, 58, 29.1, 200, _ADA),
    _gpu("rtx4080", "GeForce RTX 4080", 15.6, 717, 97.5, 48.7, 320, _ADA),
    _gpu("rtx4090", "GeForce RTX 4090", 23.5, 1008, 165.2, 82.6, 450, _ADA, use_flops=0.88, use_bandwidth=0.85),
    _gpu("rtx5070ti", "GeForce RTX 5070 Ti", 15.4, 896, 87.9, 43.9, 300, _BLACKWELL),
    _gpu("rtx5080", "GeForce RTX 5080", 15.4, 960, 112.6, 56.3, 360, _BLACKWELL),
    _gpu("rtx5090", "GeForce RTX 5090", 31.3, 1792, 209.5, 104.8, 575, _BLACKWELL),
    _gpu("rtxa6000", "RTX A6000", 47.4, 768, 154.8, 38.7, 300, f"{_NVIDIA}products/workstations/rtx-a6000/"),
    _gpu("rtx6000ada", "RTX 6000 Ada", 47.4, 960, 364.2, 91.1, 300, f"{_NVIDIA}products/workstations/rtx-6000/"),
    _gpu("t4", "Tesla T4", 14.5, 320, 65, 8.1, 70, f"{_NVIDIA}data-center/tesla-t4/", bf16=False),
    _gpu("v100", "Tesla V100 SXM2 32 GB", 31.7, 900, 125, 15.7, 300, f"{_NVIDIA}data-center/v100/", bf16=False),
    _gpu("a10", "A10", 22, 600, 125, 31.2, 150, f"{_NVIDIA}data-center/products/a10-gpu/"),
    _gpu("a10g", "A10G", 22, 600, 70, 35, 300, _A10G),
    _gpu("l4", "L4", 22, 300, 121, 30.3, 72, f"{_NVIDIA}data-center/l4/"),
    _gpu("l40s", "L40S", 44.3, 864, 362, 91.6, 350, f"{_NVIDIA}data-center/l40s/", use_flops=0.77, use_bandwidth=0.83),
    _gpu("a100-40", "A100 40 GB", 39.3, 1555, 312, 19.5, 400, f"{_NVIDIA}data-center/a100/", use_flops=0.74),
    _gpu("a100-80", "A100 80 GB SXM", 79.1, 2039, 312, 19.5, 400, f"{_NVIDIA}data-center/a100/", use_flops=0.74),
    _gpu("h100", "H100 80 GB SXM", 79.1, 3350, 989, 67, 700, f"{_NVIDIA}data-center/h100/", use_flops=0.66, **_HOPPER),
    _gpu("h100-pcie", "H100 80 GB PCIe", 79.1, 2000, 756, 51, 350, f"{_NVIDIA}data-center/h100/", **_HOPPER),
    _gpu("h200", "H200 SXM", 139.7, 4800, 989, 67, 700, f"{_NVIDIA}data-center/h200/", use_flops=0.66, **_HOPPER),
    _gpu("b200", "B200", 178.3, 8000, 2250, 75, 1000, f"{_NVIDIA}data-center/dgx-b200/", **_HOPPER),
)

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def find_device(name: str) -> Device:
    """The device of a name such as rtx4090 or "RTX 4090". Raises TopcoatError with the nearest names."""
    by_name = {device.name: device for device in DEVICES}
    wanted = _plain(name)
    for device in DEVICES:
        if wanted in (_plain(device.name), _plain(device.says)):
            return device
    near = [known for known in by_name if wanted and wanted in (_base(by_name[known]), known.removeprefix("rtx"))]
    near = near or difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.5)
    own = "auto is this machine's own. " if wanted.startswith(("cuda", "gpu")) else ""
    fix = f"did you mean {' or '.join(near)}? " if near and not own else own
    raise TopcoatError(
        f"{name[:60]!r} is no device that is known",
        "--device",
        f"{fix}Known are auto, cpu, {', '.join(by_name)}; --budget 24GiB plans for any other's memory",
    )


def device_in(text: str) -> Device | None:
    """The device that a driver's description names, such as "NVIDIA H100 80GB HBM3".

    None for one that is not in the table, be its name as near as "RTX 4090 Laptop GPU", "RTX 4070 Ti" or "T400": such
    a card has another memory and another speed.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word and not _SAYS_NOTHING.fullmatch(word)]
    sizes = [int(word[:-2]) for word in words if _MEMORY.fullmatch(word)]
    plain = "".join(word for word in words if word != "pcie" and not _MEMORY.fullmatch(word))
    same = [
        device
        for device in DEVICES
        if _base(device) == plain and all(abs(size * GIB - device.memory_bytes) < size * GIB / 8 for size in sizes)
    ]
    own = [device for device in same if device.name.endswith("-pcie") == ("pcie" in words)]
    return next(iter(own or same), None)


_SAYS_NOTHING = re.compile(r"nvidia|geforce|tesla|generation|gpu|hbm\d?e?|sxm\d?")
"""Words of a description that tell no two devices of the table apart."""
_MEMORY = re.compile(r"\d+gb")


def _base(device: Device) -> str:
    """a100 of a100-80."""
    return _plain(device.name.partition("-")[0])


def parse_bytes(text: str, where: str = "--budget") -> int:
    """ "6GiB" -> bytes. Raises TopcoatError for a number without a unit, an unknown unit, or nothing at all."""
    found = _SIZE.fullmatch(str(text))  # a number from Python has no unit either
    if found is None:
        raise TopcoatError(f"{text!r} is no amount of memory", where, "write a number and a unit, such as 6GiB or 24GB")
    number, unit = float(found[1]), found[2].lower()
    if not unit:
        raise TopcoatError(f"{text!r} has no unit", where, f"write {found[1]}GiB, {found[1]}GB or {found[1]}MiB")
    if unit not in _UNITS:
        raise TopcoatError(f"{found[2]!r} is no unit of memory", where, f"use one of {', '.join(_UNITS)}")
    size = round(number * _UNITS[unit])
    if not size:
        raise TopcoatError("a budget of nothing fits nothing", where, "write an amount above zero, such as 6GiB")
    return size


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("geforce", "").replace("nvidia", ""))
