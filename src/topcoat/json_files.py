"""JSON, read so that nothing is lost in silence and every failure has one type: strict texts, and files of one object.

Python's `json` keeps the last of two equal keys, dies of deep nesting with a RecursionError, and of long integers with
a plain ValueError. Here a repeated key is refused, and all of these are a JSONDecodeError.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from topcoat.errors import TopcoatError
from topcoat.units import show_bytes

MOST_BYTES = 512 * 2**20  # the largest tokenizer.json in use has some 40 MB


class _Repeated(ValueError):
    """A key that stands twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(f"the key {next(name for name in names if names.count(name) > 1)[:60]!r} stands twice")
    return found


class StrictDecoder:
    """Decodes JSON texts. `constant`, if given, is called with "NaN", "Infinity" or "-Infinity" where one stands."""

    def __init__(self, constant: Callable[[str], None] | None = None) -> None:
        def told(name: str) -> float:
            if constant is not None:
                constant(name)
            return float(name)

        self._decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=told)

    def decode(self, text: str) -> Any:
        """The value of the whole text. Raises JSONDecodeError, and nothing else."""
        with _as_json_errors(text, 0):
            return self._decoder.decode(text)

    def decode_one(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends. Raises JSONDecodeError, and nothing else."""
        with _as_json_errors(text, at):
            return self._decoder.raw_decode(text, at)


@contextmanager
def _as_json_errors(text: str, at: int) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("brackets are nested too deeply", text, at) from error
    except _Repeated as error:
        raise json.JSONDecodeError(str(error), text, at) from error
    except ValueError as error:  # Python refuses integers of more than 4,300 digits
        raise json.JSONDecodeError("a number has too many digits", text, at) from error


_STRICT = StrictDecoder()


def loads(text: str) -> Any:
    """The value of a JSON text. Raises JSONDecodeError, and nothing else."""
    return _STRICT.decode(text)


_SPACE_BEFORE_COLON = re.compile(rb'"[ \t\r]+:')


def quick_object(data: bytes) -> dict[str, Any] | None:
    """The object of a JSON text in one line, read by orjson, or None where a StrictDecoder might say something else.

    That is for what is no object, holds a number that is no small integer, or may hold a key twice. Every key ends in
    `":`, so where as many of these stand in the text as the object has keys, none was lost.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if type(value) is not dict or b"\n" in data[:-1]:
        return None
    if (b" :" in data or b"\t:" in data or b"\r:" in data) and _SPACE_BEFORE_COLON.search(data):
        return None
    try:
        return value if _n_keys(value) == data.count(b'":') else None
    except RecursionError:  # orjson reads brackets 1,024 deep
        return None


def _n_keys(value: Any) -> int:
    """Of all objects in a value; far below 0 where it holds a float, which orjson makes of long integers."""
    if type(value) is dict:
        n = len(value)
        for inner in value.values():
            if type(inner) is not str:
                n += _n_keys(inner)
        return n
    if type(value) is list:
        return sum([_n_keys(inner) for inner in value if type(inner) is not str])
    return -(10**9) if type(value) is float else 0


def to_json(value: Any) -> bytes:
    """A JSON text of plain values, in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer of over 64 bits, or half a surrogate pair
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def json_object(data: bytes, path: Path, fix: str = "") -> dict[str, Any]:
    """The object that the bytes of the file at `path` hold; a byte-order mark is skipped.

    Raises:
        TopcoatError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = loads(data.decode("utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise TopcoatError(f"{path.name} is not valid JSON: {error}", str(path), fix) from error
    if not isinstance(value, dict):
        raise TopcoatError(f"{path.name} is not a JSON object", str(path), fix)
    return value


def read_json_object(path: Path, fix: str = "") -> dict[str, Any]:
    """The object in the JSON file at `path`.

    Raises:
        TopcoatError: it cannot be read, or it is not UTF-8, not JSON, or not an object. `fix` says what to do.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise TopcoatError(f"{path.name} is not a regular file", str(path), fix)
        if status.st_size > MOST_BYTES:
            raise TopcoatError(f"{path.name} has {show_bytes(status.st_size)}: it is no such file", str(path), fix)
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise TopcoatError(f"{path.name} cannot be read: {reason}", str(path), fix) from error
    return json_object(data, path, fix)
