"""The compiled CPU kernels in every instruction set that this machine has, each held to the float64 definition.

A checkout whose C has changed since it was compiled is compiled again, so that the tests always speak of the sources.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from topcoat.kernels.native import build
from topcoat.kernels.native.library import VARIABLE, Library, native_library

DTYPES = [torch.float32, torch.bfloat16]
RELATIVE = {torch.float32: 2e-5, torch.bfloat16: 2**-8 + 2e-5}
"""Half a unit in the last place of a bf16 number is 2^-8 of it at most: results are rounded once."""
ABSOLUTE = 2e-5


@contextmanager
def native(isa: str) -> Iterator[Library | None]:
    """TOPCOAT_NATIVE=isa inside the `with`, as if the process had started with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, isa)
        native_library.cache_clear()
        try:
            yield native_library()
        finally:
            native_library.cache_clear()


def _available() -> list[str]:
    if not (build.LIBRARY.exists() and build.is_current()):
        try:
            build.build()
        except build.NoCompiler:
            return []
    found = []
    for isa in build.VARIANTS:
        with native(isa) as library:
            if library is not None and library.isa == isa:
                found.append(isa)
    return found


ISAS = _available()
WAYS = ["off", *ISAS]
"""The plain way, and every compiled one."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads for torch, and so for the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32, gap: int = 0, scale: float = 1.0) -> Tensor:
    """Random normal numbers in rows `gap` numbers apart, with NaN in the gaps, where nothing may be read or written."""
    wide = torch.full((*shape[:-1], shape[-1] + gap), torch.nan, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    wide[..., : shape[-1]] = torch.randn(shape, generator=generator) * scale
    return wide[..., : shape[-1]]


def gaps_are_untouched(x: Tensor, gap: int) -> bool:
    """Is the NaN that `drawn` left between the rows of x still there?"""
    whole = x.as_strided((*x.shape[:-1], x.shape[-1] + gap), x.stride())
    return bool(whole[..., x.shape[-1] :].isnan().all())


def assert_near(actual: Tensor, exact: Tensor) -> None:
    """Is `actual` what float64 says, to within its dtype's rounding?"""
    torch.testing.assert_close(
        actual.double(), exact.double(), rtol=RELATIVE[actual.dtype], atol=ABSOLUTE, equal_nan=True
    )
