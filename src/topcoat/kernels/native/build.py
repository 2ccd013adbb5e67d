"""Builds the C sources of this folder into one library beside them: python -m topcoat.kernels.native.build

Every source of UNITS is compiled once for each of its instruction sets, under names that carry it (topcoat_avx2_rope),
and library.py picks at run time. The compiler is the PyPI package `ziglang` (a whole clang in a wheel; pinned, so that
everybody's library is the same, and built against glibc 2.17), else $CC, else `cc`. The library holds the hash of its
sources and of this file: one that was built from others is not loaded.

Only the standard library is used here: the build of the wheel runs this file before topcoat is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libtopcoat.so"  # .so on macOS too: ctypes does not mind

GLIBC = (2, 17)
"""The oldest C library that what ziglang builds runs on: older than any that torch's wheels accept."""

_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
VARIANTS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mprfchw"),
}
"""Instruction sets in rising order, cpu.c's numbers, and the flags that let the compiler use them."""

_EVERY = ("portable", "avx2", "avx512")
_ROUNDING = (*_EVERY, "avx512_amx")  # what rounds to bf16 all day: one instruction there, and 0 below 2^-126
_TILES = ("avx512", "avx512_amx")
UNITS: dict[str, tuple[str, ...]] = {
    "parallel.c": ("portable",),
    "calls.c": ("portable",),
    "cpu.c": ("portable",),
    "rms_norm.c": _ROUNDING,
    "rope.c": _ROUNDING,
    "gated.c": _ROUNDING,
    "cross_entropy.c": _ROUNDING,
    "adamw.c": _EVERY,
    "nf4.c": _EVERY,
    "integers.c": _EVERY,
    "int8.c": _EVERY,
    "centres.c": _EVERY,
    "words.c": _EVERY,
    "rows.c": _EVERY,
    "attention_forward.c": _TILES,
    "attention_backward.c": _TILES,
    "product.c": ("avx512_amx",),
    "outer.c": ("avx512_amx",),
    "projection.c": ("avx512_amx",),
}
"""Which variants each source is compiled for. Other chips than x86-64 build the portable one only."""

FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-g0", "-Wall", "-Wextra", "-Wno-psabi")
# no errno, no traps and no sanitizer: a square root is one instruction. Nothing that reorders sums or drops NaN.
MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-sanitize=undefined")


class NoCompiler(Exception):
    """There is nothing here to compile C with, or it failed; str() says which."""


def sources_hash() -> str:
    """A fingerprint of everything the library is made of, this file's flags included."""
    digest = hashlib.sha256()
    for path in sorted((*FOLDER.glob("*.[ch]"), FOLDER / "build.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def is_current(library: Path = LIBRARY) -> bool:
    """Was `library` built from the sources as they lie here? Its bytes say so: nothing of it runs."""
    return f"topcoat sources {sources_hash()}".encode() in library.read_bytes()


def compiler() -> list[str]:
    """The command that compiles C. Raises NoCompiler."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    if importlib.util.find_spec("ziglang") is not None:
        aim = f"{platform.machine()}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
        return [sys.executable, "-m", "ziglang", "cc", *(("-target", aim) if targets_glibc() else ())]
    found = shutil.which("cc")
    if found is None:
        raise NoCompiler("no C compiler: neither the package ziglang nor cc is here")
    return [found]


def targets_glibc() -> bool:
    """Does `compiler` aim at any Linux with GLIBC or newer, and the plainest chip, instead of this very system?"""
    linux = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    known = linux and platform.machine() in ("x86_64", "aarch64")
    return known and not os.environ.get("CC") and importlib.util.find_spec("ziglang") is not None


def build(library: Path = LIBRARY) -> Path:
    """Compiles and links `library`, which is replaced at one stroke. Raises NoCompiler with the compiler's words."""
    command, x86 = compiler(), platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as scratch:
        jobs, objects = [], []
        for source, variants in UNITS.items():
            for variant in variants if x86 else [v for v in variants if v == "portable"]:
                made = str(Path(scratch, f"{source}.{variant}.o"))
                defines = (f"-DVARIANT={variant}", f'-DSOURCES_HASH="{sources_hash()}"')
                flags = (*FLAGS, *MATH, *VARIANTS[variant], *defines)
                jobs.append([*command, *flags, "-c", str(FOLDER / source), "-o", made])
                objects.append(made)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        linked = library.with_name(f"{library.name}.{os.getpid()}")
        try:
            _run([*command, "-shared", "-s", *objects, "-lm", "-o", str(linked)])
            os.replace(linked, library)
        finally:
            linked.unlink(missing_ok=True)
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as wrong:
        raise NoCompiler(f"{command[0]} does not start: {wrong}") from wrong
    if done.returncode:
        raise NoCompiler(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    try:
        print(f"built {build()}")
    except NoCompiler as wrong:
        sys.exit(str(wrong))
