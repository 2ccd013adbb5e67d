"""metrics.jsonl: one line of JSON a step, which every report reads.

Numbers are written so that reading gives the same float back, bit for bit. JSON has no NaN: it is written as the text
"NaN", infinities as "Infinity" and "-Infinity", and `read_metrics` turns them back, so that any JSON reader can follow.
A checkpoint records the length of the log; resuming cuts it there, so that no step is told twice.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from topcoat.disk_errors import disk_error
from topcoat.errors import TopcoatError
from topcoat.files import make_folder, sync_folder

NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Appends to one metrics.jsonl. A half line that a crash left at the end is cut off on opening."""

    def __init__(self, path: Path) -> None:
        """Raises TopcoatError: the file cannot be opened for writing."""
        self.path = path
        try:
            make_folder(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(error, path, None) from error
        self.truncate(os.fstat(self._descriptor).st_size)

    def write(self, row: dict[str, Any]) -> None:
        """Append one line. Keys are text; values what JSON can hold.

        Raises:
            DiskFull: no room; the log is as before, and the same call can be repeated.
        """
        line = memoryview((json.dumps(_writable(row), allow_nan=False, separators=(", ", ": ")) + "\n").encode())
        end = os.fstat(self._descriptor).st_size
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._descriptor, line[done:], end + done)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise disk_error(error, self.path, len(line)) from error

    def length(self) -> int:
        """Bytes in the log, on the disk by the time this returns: what a checkpoint records.

        Raises:
            DiskFull: the disk did not take them.
        """
        try:
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise disk_error(error, self.path, None) from error

    def truncate(self, length: int) -> int:
        """Cut the log to its whole lines within the first `length` bytes; returns how many of those bytes are lost.

        More than 0 means that the log is older than the checkpoint; the run can go on without those lines.
        """
        try:
            end = min(length, os.fstat(self._descriptor).st_size)
            while end > 0 and os.pread(self._descriptor, 1, end - 1) != b"\n":
                end -= 1
            os.ftruncate(self._descriptor, end)
        except OSError as error:
            raise disk_error(error, self.path, None) from error
        return length - end

    def close(self) -> None:
        """Nothing can be written after this."""
        os.close(self._descriptor)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every row of a metrics.jsonl; a last line that a crash or a running write left half is left out.

    Raises:
        TopcoatError: the file cannot be read, or a line before the last is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TopcoatError(f"cannot read {path.name}: {error.strerror}", str(path), "give a run folder") from error
    whole, torn = lines[:-1], lines[-1]
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            rows.append(_readable(row))
        except (ValueError, RecursionError) as error:
            if number == len(whole) and not torn:
                break  # a power cut can leave the end of the last line empty
            raise TopcoatError(
                f"line {number} is not a JSON object: {line[:60].decode(errors='replace')!r}",
                f"{path} line {number}",
                "delete that line; every line was written by itself",
            ) from error
    return rows


def _writable(value: Any) -> Any:
    """The value with NaN and infinities as text, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return value


def _readable(value: Any) -> Any:
    """Undoes `_writable`."""
    if isinstance(value, str):
        return NOT_NUMBERS.get(value, value)
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return value
