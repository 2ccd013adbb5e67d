"""What a verb prints: text for people on stdout, or one JSON object there and the text on stderr; errors in red."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topcoat.errors import Problem, TopcoatError

if TYPE_CHECKING:
    from rich.console import Console


def make_console(as_json: bool = False) -> Console:
    """A console for people: on stdout, or on stderr when stdout belongs to JSON."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False, soft_wrap=True)


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; the last thing a verb prints. nan and infinity become null."""
    print(json.dumps(json_ready(values), ensure_ascii=False, allow_nan=False), flush=True)


def json_ready(value: Any) -> Any:
    """`value` with paths as text, tuples as lists and numbers that JSON cannot write as null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Notes of reading a recipe, dim; those that begin "warning:" in yellow."""
    for note in notes:
        console.print(note, style="yellow" if note.startswith("warning") else "dim", markup=False)


def print_problems(problems: Iterable[Problem]) -> None:
    """Problems on stderr: what in red, where and fix below it."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        first, *rest = str(problem).split("\n")
        console.print(first, style="bold red", markup=False)
        for line in rest:
            console.print(line, markup=False)


def error_json(error: TopcoatError, exit_code: int) -> dict[str, Any]:
    """A failure as JSON: {"ok": false, "exit_code": 2, "problems": [{"what", "where", "fix"}]}."""
    said = [{"what": item.what, "where": item.where, "fix": item.fix} for item in error.problems]
    return {"ok": False, "exit_code": exit_code, "problems": said}


def make_streams_safe() -> None:
    """Characters that the terminal's encoding lacks are printed as escapes instead of ending the run."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
