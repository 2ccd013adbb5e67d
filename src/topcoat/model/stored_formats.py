"""The number formats of a checkpoint that is quantized already, by its headers alone. No torch here: plans ask.

`quantized_tensors.JOINS` makes linears readable and checks much more; here a linear is known by one of its parts:

    gptq, awq       X.qweight
    bitsandbytes    X.weight.quant_state.bitsandbytes__nf4 (or fp4), X.SCB for int8
    topcoat         X.weight.topcoat, whose bytes are JSON with the format's name
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from topcoat.errors import TopcoatError
from topcoat.model.safetensors_header import FETCH, SafetensorsEntry

_STATE = ".weight.quant_state.bitsandbytes__"
_OWN = ".weight.topcoat"


def stored_formats(entries: Sequence[SafetensorsEntry]) -> dict[str, str]:
    """Path of each quantized linear -> the name of its format. Raises TopcoatError for a description that is none."""
    found = {}
    for entry in entries:
        path, is_state, kind = entry.name.partition(_STATE)
        if is_state:
            found[path] = kind
        elif entry.name.endswith(".qweight"):
            found[entry.name.removesuffix(".qweight")] = "gptq"
        elif entry.name.endswith(".SCB"):
            found[entry.name.removesuffix(".SCB")] = "int8"
        elif entry.name.endswith(_OWN):
            found[entry.name.removesuffix(_OWN)] = _described(entry)
    return found


def _described(entry: SafetensorsEntry) -> str:
    try:
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            return str(json.loads(file.read(entry.n_bytes))["config"]["format"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TopcoatError(f"tensor {entry.name} cannot be read ({error})", str(entry.file), FETCH) from error
