"""topcoat data check: a verdict on a file or a recipe's data, with the rows each finding is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topcoat.cli.output import json_ready, make_console, print_json, print_notes
from topcoat.cli.overwriting import files_of, require_writable
from topcoat.cli.process import prepare_process
from topcoat.recipe.load import load_recipe_with_notes, recipe_from_dict

if TYPE_CHECKING:
    from rich.console import Console

    from topcoat.data.checks.corpus import Setting
    from topcoat.data.checks.verdict import Verdict
    from topcoat.data.progress import Tell
    from topcoat.data.settings import DataSettings
    from topcoat.recipe.schema import Recipe

RECIPES = (".yaml", ".yml")


def command(
    what: Annotated[Path, typer.Argument(metavar="FILE_OR_RECIPE", help="file of rows, or a recipe (.yaml)")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as data.checks.near_duplicates=stop")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="file of validation rows; of a recipe, its own if left out")
    ] = None,
    against_eval: Annotated[
        list[Path] | None, typer.Option(help="file of a benchmark's questions, in any shape; may be given again")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write a page that stands alone to this file")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="write each row found, with its line and why, to this .jsonl")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="write a cleaned copy to this file; the original is only read")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> int:
    """Check what is in the data before it is trained on. Exit code 0: fine; 1: a finding stops a run; 2: unreadable."""
    console = make_console(json)
    recipe = _recipe(what, overrides or [], console)
    inputs = [what, *map(Path, files_of(recipe.data)), *([against] if against else []), *(against_eval or [])]
    require_writable({"--html": html, "--rows": rows, "--fix": fix}, inputs)
    if against is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": str(against)})})

    from topcoat.cli.waiting import waiting
    from topcoat.data.checks.files import check_files
    from topcoat.data.checks.fix import fix as write_fixed
    from topcoat.data.checks.fix import require_free

    if fix is not None:
        require_free(fix)
    with waiting(console) as tell:
        settings, objective, setting = _asked(recipe, _is_recipe(what), console, tell)
        verdict = check_files(
            settings,
            objective=objective,
            benchmarks=against_eval or [],
            setting=lambda number: setting(number, tell),
            tell=tell,
        )
        fixed = write_fixed(verdict, settings, fix) if fix is not None else None
    if not json:
        console.print(verdict)
    _write(verdict, html, rows, console)
    if fixed is not None:
        for line in fixed.lines():
            console.print(line, markup=False)
    if json:
        print_json(verdict.to_dict() | ({"fixed": fixed.to_dict()} if fixed else {}))
    return verdict.exit_code


def _write(verdict: Verdict, html: Path | None, rows: Path | None, console: Console) -> None:
    """The page and the list of rows, where they are asked for. Raises TopcoatError: the disk did not take one."""
    from topcoat.files import write_file

    if html is not None:
        from topcoat.report.check_page import render

        write_file(html, render(verdict))
        console.print(f"page: {html}", markup=False)
    if rows is not None:
        from json import dumps

        found = list(verdict.row_list())
        write_file(rows, "".join(dumps(json_ready(row), ensure_ascii=False) + "\n" for row in found))
        console.print(f"{len(found):,} rows listed in {rows}", markup=False)


def _is_recipe(what: Path) -> bool:
    return what.suffix.lower() in RECIPES


def _recipe(what: Path, overrides: list[str], console: Console) -> Recipe:
    """The recipe that `what` is, or the smallest around a file of rows. Raises TopcoatError: it cannot be read, or an
    override is none."""
    if _is_recipe(what):
        recipe, notes = load_recipe_with_notes(what, overrides)
        print_notes(notes, console)
        return recipe
    data = {"train": str(what), "validation": None}
    smallest = {"model": {"path": "-"}, "data": data, "output": "-"}
    return recipe_from_dict(smallest, "the command line", overrides, check_files=False)


def _asked(
    recipe: Recipe, is_recipe: bool, console: Console, tell: Tell
) -> tuple[DataSettings, str, Callable[[int, Tell], Setting]]:
    """The data's settings, what is learned of them, and what is known besides: of a file nothing, of a recipe what its
    model says."""
    from topcoat.data.checks.corpus import Setting

    if is_recipe:
        prepare_process(recipe.model.path, console)

        from topcoat.runs.checking import checked_as, recipe_setting

        return checked_as(recipe), recipe.train.objective, lambda rows, tell: recipe_setting(recipe, rows, tell)
    settings, objective = recipe.data, str(recipe.train.objective)
    if objective == "sft":
        from topcoat.data.checks.reading import likely_objective

        objective, why_not = likely_objective(settings, tell)
        if why_not:
            console.print(f"note: {why_not}", markup=False)
    return settings, objective, lambda rows, tell: Setting()
