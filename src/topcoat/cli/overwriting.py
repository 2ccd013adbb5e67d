"""Which files a command may write: none that it reads, none twice, and over nothing but an earlier report of its own.

It is asked before anything is read, so a slip on the command line costs nothing. A page is known by its title, a list
of rows by its first line; an empty file, which a list of no rows is too, has nothing to lose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from topcoat.errors import Problem, TopcoatError

if TYPE_CHECKING:
    from topcoat.data.settings import DataSettings

PAGE = re.compile(rb"<!doctype html>\n.{,65536}? \xc2\xb7 data (?:check|show) \xc2\xb7 Topcoat</title>", re.DOTALL)
LISTED = {"check", "policy", "file", "line", "said"}
"""What each line of a list of rows says."""
HEAD_BYTES = 2**17


def files_of(settings: DataSettings) -> list[str]:
    """Every file of rows that a recipe names."""
    held_out = [settings.validation] if isinstance(settings.validation, str) else []
    return [*(file for file, _ in settings.train_files), *held_out]


def require_writable(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """`outputs` are the paths by their options, None where an option is not given.

    Raises TopcoatError saying every output that is an input, the same as another output, or something else that is
    there already.
    """
    read = [Path(path) for path in inputs]
    given = {option: path for option, path in outputs.items() if path is not None}
    problems: list[Problem] = []
    for number, (option, path) in enumerate(given.items()):
        before = list(given.items())[:number]
        twin = next((other for other, held in before if _same(path, held)), None)
        if any(_same(path, one) for one in read):
            problems.append(Problem(f"{path} is a file that this command reads", option, "name another file"))
        elif twin is not None:
            problems.append(Problem(f"{twin} and {option} are the same file, {path}", option, "name another file"))
        elif not _may_go(path):
            what = f"{path} is there already, and topcoat did not write it as a report"
            problems.append(Problem(what, option, "name another file, or remove it"))
    if problems:
        raise TopcoatError.gather(problems)


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file: by its own number where they are there, else by where they would be."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()


def _may_go(path: Path) -> bool:
    """Whether nothing is at `path`, or an earlier report."""
    if not path.exists() and not path.is_symlink():
        return True
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return not head or PAGE.match(head) is not None or _is_listed(head)


def _is_listed(head: bytes) -> bool:
    try:
        row = json.loads(head.partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() == LISTED
