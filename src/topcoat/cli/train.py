"""topcoat train: a recipe becomes an adapter, with its scores and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from topcoat.cli.output import make_console, print_json, print_notes
from topcoat.cli.process import prepare_process
from topcoat.recipe.load import load_recipe_with_notes


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/chat-qlora.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as train.epochs=1")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint that verifies")] = False,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Train an adapter from a recipe. Ctrl-C saves and stops; the same command with --resume continues."""
    console = make_console(json)
    settings, notes = load_recipe_with_notes(recipe, overrides or [])
    print_notes(notes, console)
    prepare_process(settings.model.path, console)

    from topcoat.cli.live import Terminal
    from topcoat.cli.show import comparison, next_steps, score_table
    from topcoat.runs.run import run

    result = run(settings, resume=resume, listener=Terminal(console))
    console.print(score_table(result))
    console.print(comparison(result.folder, most=3))
    console.print(next_steps(result))
    if json:
        print_json(summary(result))
    return 0


def summary(result: Any) -> dict[str, Any]:
    """The run as one JSON object."""
    return {
        "run": str(result.folder),
        "adapter": str(result.adapter),
        "steps": result.steps,
        "train_seconds": result.train_seconds,
        "base": result.base.as_json(),
        "tuned": result.tuned.as_json(),
    }
