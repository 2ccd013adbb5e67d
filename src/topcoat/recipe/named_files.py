"""The files a recipe names: each must be there and be of the right kind, or the near names in its folder are said.

Paths are relative to the current directory, as typed.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from topcoat.data.lines import ENDINGS, KINDS, names_rows
from topcoat.errors import Problem
from topcoat.model.settings import HUB_ID
from topcoat.recipe.written import Leaf, Written


def find_missing_files(written: Written) -> None:
    """Add a problem for every named file that cannot be what the setting needs, with near names."""
    model = written.leaves.get(("model", "path"))
    if model and isinstance(model.value, str) and model.value:
        _check_model(model, written)
    for path in (("data", "train"), ("data", "validation"), ("model", "chat_template")):
        leaf = written.leaves.get(path)
        if leaf and isinstance(leaf.value, str) and leaf.value:
            _check_file(leaf, written)
    mixture = written.leaves.get(("data", "mixture"))
    for number, part in enumerate(mixture.value if mixture and isinstance(mixture.value, list) else []):
        file = part.get("train_file") if isinstance(part, dict) else None
        if mixture and isinstance(file, str) and file:
            key = f"{mixture.key}.{number}.train_file"
            _check_file(Leaf(("data", "train_file"), file, key, mixture.where), written)
    train, held = (written.leaves.get(("data", key)) for key in ("train", "validation"))
    if train and held and isinstance(held.value, str) and held.value and isinstance(train.value, str):
        both_there = os.path.exists(train.value) and os.path.exists(held.value)
        if both_there and os.path.samefile(train.value, held.value):
            what = f"{held.key} is the training file itself, {held.value}: every score would be a memory test"
            written.problems.append(Problem(what, held.where, "name other rows, or a share such as 0.1"))
    output = written.leaves.get(("output",))
    if output and isinstance(output.value, str) and output.value and os.path.isfile(output.value):
        what = f"{output.key} is {output.value}, which is a file"
        written.problems.append(Problem(what, output.where, "name a folder that is not there yet"))


def looks_local(path: str) -> bool:
    """Whether a model path means a place on this disk rather than a hub id."""
    if os.path.exists(path) or path.endswith((".gguf", ".safetensors")) or not HUB_ID.fullmatch(path):
        return True
    head, slash, _ = path.partition("/")
    return bool(slash) and os.path.isdir(head)


def _check_model(leaf: Leaf, written: Written) -> None:
    path = Path(leaf.value)
    if not looks_local(leaf.value):
        return
    if not os.path.exists(path):
        written.problems.append(_absent(leaf, "a model directory or a .gguf file"))
    elif os.path.isdir(path) and not (path / "config.json").exists():
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        fix = f"name the file itself: {path / ggufs[0]}" if ggufs else "name the folder that holds config.json"
        written.problems.append(Problem(f"{leaf.key} is {leaf.value}, which has no config.json", leaf.where, fix))
    elif os.path.isfile(path) and path.suffix != ".gguf":
        what = f"{leaf.key} is {leaf.value}, which is not a .gguf file"
        written.problems.append(Problem(what, leaf.where, f"name its folder: {path.parent}"))


def _check_file(leaf: Leaf, written: Written) -> None:
    path = Path(leaf.value)
    if not os.path.exists(path):
        kinds = {"chat_template": "a file with a Jinja chat template"}
        written.problems.append(_absent(leaf, kinds.get(leaf.path[-1], "a file of rows")))
    elif os.path.isdir(path):
        rows = sorted(file.name for file in path.iterdir() if _has_rows(file))
        fix = f"name one file, such as {path / rows[0]}" if rows else f"name a file ending in {', '.join(KINDS)}"
        written.problems.append(Problem(f"{leaf.key} is {leaf.value}, which is a folder", leaf.where, fix))
    elif leaf.path[0] == "data" and not _has_rows(path):
        what = f"{leaf.key} is {leaf.value}, whose ending names no known kind of rows"
        fix = f"endings read: {ENDINGS}"
        written.problems.append(Problem(what, leaf.where, fix))


def _has_rows(path: Path) -> bool:
    return names_rows(path.name)


def _absent(leaf: Leaf, kind: str) -> Problem:
    what = f"{leaf.key} is {leaf.value}, which is not there; expected {kind}"
    if leaf.value.startswith("~"):
        return Problem(what, leaf.where, f"~ is not read in a recipe; write {os.path.expanduser(leaf.value)}")
    return Problem(what, leaf.where, near_names(Path(leaf.value)))


def near_names(path: Path) -> str:
    """What to type instead of a path that does not exist: near names in the deepest folder of it that does."""
    folder, wanted = path.parent, path.name
    while not os.path.isdir(folder):
        folder, wanted = folder.parent, folder.name
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f"{folder} cannot be listed; check its permissions"
    score = {name: _likeness(Path(wanted.lower()), Path(name.lower())) for name in names}
    best = max(score.values(), default=0.0)
    near = [name for name in names if score[name] >= max(0.6, best - 0.05)][:3]
    if near:
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    place = "the current directory" if str(folder) == "." else str(folder)
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{place} has {listed}" if names else f"{place} is empty"


def _likeness(one: Path, other: Path) -> float:
    """How alike two names are, 0 to 1; an ending that both have does not make them so."""
    same = one.suffix == other.suffix
    return difflib.SequenceMatcher(None, *((one.stem, other.stem) if same else (one.name, other.name))).ratio()
