"""Finds and loads the compiled library with ctypes; None where there is none, and the plain definitions serve.

TOPCOAT_NATIVE restricts what runs: off, or the highest instruction set wanted (portable, avx2, avx512, avx512_amx).
Its threads are those of torch's own OpenMP runtime (parallel.h), as many as torch.get_num_threads() says.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.kernels.native.build import LIBRARY, VARIANTS, is_current
from topcoat.kernels.native.calls import Deferrable, settle

VARIABLE = "TOPCOAT_NATIVE"
_TYPES: dict[str, Any] = {
    "i": ctypes.c_int64,
    "p": ctypes.c_void_p,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "-": None,
}

# result and arguments of each function, a letter each (_TYPES); the C sources name them
SIGNATURES = {
    "gated": "- iiiii pi pi",
    "gated_backward": "- iiiii pi pi",
    "cross_entropy": "i iiii pi pp fff i",
    "adamw": "- ii pppp fffffffff",
    "square_sum": "d ii pp",
    "dequantize_integers": "- iiii pi ppp ii",
    "dequantize_int8": "- iiii pi pp",
    "best_centres": "- i ppppppp iiiii",
    "words_rules_new": "p ii ppipi ppp",
    "words_rules_free": "- p",
    "words_new": "p p",
    "words_free": "- p",
    "words_add": "i ppii",
    "words_find": "i ppi ppp",
    "words_asked": "i pp",
    "words_tell": "i pi pppp",
    "words_held": "- pp",
    "words_count": "i pip",
    "words_write": "- pi pppp ipp",
    "rows_read": "i pi pip pp pppp pp ppp",
    "rows_join": "i pi pppp p",
    "rows_digests": "- pi pp",
}
STEPS = ("rms_norm", "rms_norm_backward", "rope", "dequantize_nf4")
"""Functions of one structure, which can wait for each other (calls.py)."""
# on tiles (tiles.h): for avx512 and avx512_amx, each their own, and bound only there
TILE_SIGNATURES = {"attention_forward_bytes": "i p", "attention_backward_bytes": "i p"}
TILE_STEPS = ("attention_forward", "attention_backward")
# nothing but AMX makes these worth having
AMX_SIGNATURES = {
    "product": "- p",
    "product_bytes": "i p",
    "outer": "- p",
    "outer_bytes": "i p",
    "projection_bytes": "i pii",
    "projection_fill": "- pi",
}
AMX_STEPS = ("projection_forward", "projection_backward")


class Library:
    """The functions of one instruction set. They take addresses and strides as plain ints; steps one structure of them,
    and the tensors that it points to."""

    rms_norm: Deferrable
    rms_norm_backward: Deferrable
    rope: Deferrable
    gated: Callable[..., None]
    gated_backward: Callable[..., None]
    cross_entropy: Callable[..., int]
    adamw: Callable[..., None]
    square_sum: Callable[..., float]
    attention_forward: Deferrable
    attention_forward_bytes: Callable[..., int]
    attention_backward: Deferrable
    attention_backward_bytes: Callable[..., int]
    dequantize_nf4: Deferrable
    dequantize_integers: Callable[..., None]
    dequantize_int8: Callable[..., None]
    best_centres: Callable[..., None]
    words_rules_new: Callable[..., int | None]
    words_rules_free: Callable[..., None]
    words_new: Callable[..., int | None]
    words_free: Callable[..., None]
    words_add: Callable[..., int]
    words_find: Callable[..., int]
    words_asked: Callable[..., int]
    words_tell: Callable[..., int]
    words_held: Callable[..., None]
    words_count: Callable[..., int]
    words_write: Callable[..., None]
    rows_read: Callable[..., int]
    rows_join: Callable[..., int]
    rows_digests: Callable[..., None]
    product: Callable[..., None]
    product_bytes: Callable[..., int]
    outer: Callable[..., None]
    outer_bytes: Callable[..., int]
    projection_bytes: Callable[..., int]
    projection_fill: Callable[..., None]
    projection_forward: Deferrable
    projection_backward: Deferrable

    def __init__(self, loaded: ctypes.CDLL, isa: str) -> None:
        self.isa = isa
        """avx512_amx, avx512, avx2 or portable."""
        everywhere = "avx512" if isa == "avx512_amx" else isa  # not everything gains by what AMX's processors have
        signatures, steps = dict(SIGNATURES), list(STEPS)
        if everywhere == "avx512":
            signatures, steps = signatures | TILE_SIGNATURES, [*steps, *TILE_STEPS]
        if isa == "avx512_amx":
            signatures, steps = signatures | AMX_SIGNATURES, [*steps, *AMX_STEPS]

        def function(name: str, letters: str) -> Any:
            own = f"topcoat_{isa}_{name}"
            return _bind(loaded, own if hasattr(loaded, own) else f"topcoat_{everywhere}_{name}", letters)

        for name, letters in signatures.items():
            setattr(self, name, _settled(name, function(name, letters)))
        make_all = _bind(loaded, "topcoat_make_calls", "- pi")
        for name in steps:
            setattr(self, name, Deferrable(function(name, "- p"), make_all))


def _settled(name: str, function: Any) -> Callable[..., Any]:
    """`function`, before which the calls that wait are made; a count of bytes needs nothing of them."""
    if name.endswith("_bytes"):
        return function

    def run(*arguments: Any) -> Any:
        settle()
        return function(*arguments)

    return run


def _bind(loaded: ctypes.CDLL, name: str, letters: str) -> Any:
    function = loaded[name]
    types = [_TYPES[letter] for letter in letters.replace(" ", "")]
    function.restype, function.argtypes = types[0], types[1:]
    return function


@cache
def native_library() -> Library | None:
    """The library for this processor, loaded once; None if it is switched off, absent or stale (said once)."""
    loaded = _opened()
    threading = _torch_threading() if loaded is not None else None
    if loaded is not None and threading is not None:
        loaded.topcoat_set_threading.argtypes = [ctypes.c_void_p] * 3
        loaded.topcoat_set_threading(*threading)
    return _of(loaded)


@cache
def threadless_library() -> Library | None:
    """The same for what runs on the calling thread alone: torch is not imported for it."""
    return _of(_opened())


def _opened() -> ctypes.CDLL | None:
    return None if _wanted() == "off" else _load(LIBRARY)


def _of(loaded: ctypes.CDLL | None) -> Library | None:
    levels = list(VARIANTS)
    return (
        Library(loaded, levels[min(loaded.topcoat_cpu_level(), levels.index(_wanted()))])
        if loaded is not None
        else None
    )


def _wanted() -> str:
    """What TOPCOAT_NATIVE says."""
    wanted = os.environ.get(VARIABLE) or "avx512_amx"
    if wanted not in (*VARIANTS, "off"):
        raise TopcoatError(
            f"{VARIABLE}={wanted} names no instruction set", fix=f"set it to off, {', '.join(VARIANTS)}, or not at all"
        )
    return wanted


def _load(path: Path) -> ctypes.CDLL | None:
    log = logging.getLogger(__name__)
    if not path.exists():
        return None
    if not is_current(path):
        log.warning("%s was built from other sources and is not used: run make native", path)
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as wrong:  # built for another system
        log.warning("%s does not load (%s): run make native", path, wrong)
        return None


def _torch_threading() -> tuple[int, int, int] | None:
    """Addresses of torch's OpenMP functions, if it has been built with a runtime that has them."""
    import torch

    places = [Path(torch.__file__).parent / "lib" / name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib")]
    for place in (None, *(str(place) for place in places if place.exists())):
        try:
            found = ctypes.CDLL(place)
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            parallel, number, count = (ctypes.cast(found[name], ctypes.c_void_p).value for name in names)
        except (OSError, AttributeError):  # no such library; no such function in it
            continue
        if parallel and number and count:
            return parallel, number, count
    return None
