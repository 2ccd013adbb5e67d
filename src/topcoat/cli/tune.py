"""topcoat tune: search for the values of some settings on a slice of the training data, within a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json, print_notes
from topcoat.cli.process import prepare_process
from topcoat.recipe.load import load_recipe_with_notes


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/chat-qlora.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as train.batch_size=8")
    ] = None,
    over: Annotated[
        str, typer.Option(help="settings by commas, each with a range if wanted: learning_rate=1e-5..1e-3,r=8/16")
    ] = "learning_rate",
    budget: Annotated[str, typer.Option(help="time for the search, all calls together: 90s, 30m, 2h")] = "30m",
    output: Annotated[Path | None, typer.Option(help="folder of the search; the recipe's output with -tune")] = None,
    trials: Annotated[int | None, typer.Option(help="stop after this many trials", min=1)] = None,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> None:
    """Search for good values of settings: a learning-rate range test, then successive halving on a slice of the rows.

    Measured on rows held out of the training rows; the recipe's validation rows are not looked at. Writes the recipe
    that won and a page with plots. Ctrl-C saves; the same command continues.
    """
    from topcoat.runs.tuning_space import parse_space
    from topcoat.runs.tuning_state import parse_seconds

    began = time.monotonic()
    console = make_console(json)
    settings, notes = load_recipe_with_notes(recipe, overrides or [])
    parse_space(over, settings)  # what is wrong with either is said before torch is imported
    parse_seconds(budget)
    print_notes(notes, console)
    prepare_process(settings.model.path, console)

    from topcoat.cli.live import Terminal
    from topcoat.runs.tuning import tune
    from topcoat.runs.tuning_space import show_values
    from topcoat.runs.tuning_study import quiet

    quiet()
    tuned = tune(settings, over, budget, output=output, trials=trials, listener=Terminal(console), began=began)
    console.print(
        f"\nbest     {show_values(tuned.best.values)}: loss {tuned.best.loss:.4f}", style="green", markup=False
    )
    console.print(f"page     {tuned.folder / 'tune.html'}", markup=False)
    console.print(f"recipe   {tuned.recipe}; train with: topcoat train {tuned.recipe}", markup=False)
    if json:
        print_json(
            {
                "ok": True,
                "folder": tuned.folder,
                "recipe": tuned.recipe,
                "best": tuned.best.as_json(),
                "trials": len(tuned.tried),
                "seconds": tuned.seconds,
            }
        )
