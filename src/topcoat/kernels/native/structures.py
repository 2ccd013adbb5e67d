"""Structures that compiled code reads, by the names of their fields."""

from __future__ import annotations

import ctypes
from typing import Any

_KINDS = {"*": ctypes.c_void_p, "~": ctypes.c_float}


def fields(names: str) -> list[tuple[str, Any]]:
    """The `_fields_` of a structure: *x is an address, ~x a float, x a whole number of 64 bits."""
    return [(name.lstrip("*~"), _KINDS.get(name[0], ctypes.c_int64)) for name in names.split()]


def places(names: str) -> str:
    """The names of tensors -> those of their addresses and their strides over rows and heads, as `place` gives them."""
    return " ".join(f"*{name} {name}_t {name}_h" for name in names.split())
