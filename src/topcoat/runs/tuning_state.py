"""The folder of a search: its files, what an earlier call wrote down, and the time as it is typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.files import make_folder
from topcoat.json_files import read_json_object
from topcoat.recipe.load import dump_recipe
from topcoat.recipe.schema import Recipe
from topcoat.runs.folder import RunFolder, write_json
from topcoat.runs.tuning_space import Space, parse_space

JOURNAL, STATE, WINNER, PAGE = "study.journal", "tune.json", "winner.yaml", "tune.html"
_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_seconds(text: str) -> float:
    """ "30m", "1h30m" or "90s" -> seconds. Raises TopcoatError for a number without a unit, and for no time at all."""
    found = _TIME.fullmatch(text.strip().lower())
    if found is None or not any(found.groups()):
        fix = (
            f"write {text.strip()}m or {text.strip()}s" if text.strip().isdigit() else "write such as 30m, 90s or 1h30m"
        )
        raise TopcoatError(f"{text!r} is no time", "--budget", fix)
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    whole = 3600 * hours + 60 * minutes + seconds
    if not whole:
        raise TopcoatError("a budget of nothing finds nothing", "--budget", "write such as 30m")
    return whole


def open_study(folder: Path, recipe: Recipe, space: Space) -> dict[str, Any]:
    """What an earlier call wrote down, or the beginning. Raises TopcoatError where the folder holds something else."""
    searched = {name: str(span) for name, span in space.items()}
    fresh = {
        "space": searched,
        "usual_rates": str(space.get("learning_rate")) == str(parse_space("learning_rate", recipe)["learning_rate"]),
        "seconds": 0.0,
        "recipe": dump_recipe(recipe),
    }
    if not (folder / STATE).is_file():
        RunFolder(folder).require_free()
        make_folder(folder)
        write_json(folder / STATE, fresh)
        return fresh
    state = read_json_object(folder / STATE, "name another folder with --output")
    for name, what in (("space", "searches over"), ("recipe", "tunes")):
        if state.get(name) != fresh[name]:
            before = (
                ", ".join(f"{key}={span}" for key, span in state["space"].items())
                if name == "space"
                else "another recipe"
            )
            raise TopcoatError(
                f"the study in {folder} {what} {before}",
                str(folder / STATE),
                "name another folder with --output, or continue it with what it began with",
            )
    return {key: value for key, value in state.items() if key not in ("best", "trials", "budget_seconds")}
