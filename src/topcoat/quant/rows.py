"""Which rows each number format can store, from their length alone: groups and blocks lie inside one row, and a row's
codes fill whole bytes. No torch, so that a plan refuses in the words of a run.

    int2, int3, int4, gptq    group_size divides the row
    gptq                      as many codes as fill whole bytes: 4 of 2 bits, 8 of 3, 2 of 4
    gguf, type Q4_0 ... Q8_0  blocks of 32 weights divide the row
"""

from __future__ import annotations

from collections.abc import Sequence

from topcoat.errors import Problem, TopcoatError
from topcoat.kernels.code_sizes import CODES
from topcoat.quant.settings import GgufConfig, GptqConfig, IntConfig, QuantConfig

GROUPS = (16, 32, 64, 128, 256)
GPTQ_GROUPS = (*GROUPS, 512, 1024)
GGUF_BLOCK = 32


def row_problem(config: QuantConfig, in_features: int, beside: Sequence[int] = ()) -> Problem | None:
    """Why rows of `in_features` weights cannot be stored in `config`, or None where they can.

    What is proposed fits rows of the widths `beside` as well, where anything does.
    """
    if isinstance(config, IntConfig | GptqConfig) and config.group_size != -1 and in_features % config.group_size:
        what = f"group_size {config.group_size} does not divide rows of {in_features} weights"
        return Problem(what, "model.quantization.group_size", _groups_that_fit(config, in_features, beside))
    if isinstance(config, GptqConfig):
        return codes_problem(config.bits, in_features)
    if isinstance(config, GgufConfig) and config.type != "stored" and in_features % GGUF_BLOCK:
        what = f"{config.type} has blocks of {GGUF_BLOCK} weights, which do not divide rows of {in_features}"
        fix = "use nf4 or int8 for them, by model.quantization.overrides"
        return Problem(what, "model.quantization.type", fix)
    return None


def codes_problem(bits: int, in_features: int) -> Problem | None:
    """Why a row of `in_features` codes of `bits` bits would end inside a byte, or None where it does not."""
    if in_features % CODES[bits] == 0:
        return None
    what = f"rows of {in_features} codes of {bits} bits do not fill whole bytes"
    return Problem(what, "model.quantization.bits", "use 8 bits for them, by model.quantization.overrides")


def require_row(problem: Problem | None) -> None:
    """Raises TopcoatError where there is a problem."""
    if problem is not None:
        raise TopcoatError.gather([problem])


def _groups_that_fit(config: IntConfig | GptqConfig, in_features: int, beside: Sequence[int]) -> str:
    sizes = GROUPS if isinstance(config, IntConfig) else GPTQ_GROUPS
    own = [size for size in sizes if in_features % size == 0]
    every = [size for size in own if not any(width % size for width in beside)] or own
    named = every if isinstance(config, IntConfig) else [*every, -1]
    return f"use a group_size of {' or '.join(map(str, named))}" if named else "use nf4 or int8 for them"
