"""topcoat data split: train, validation and test files without near-duplicates across them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.errors import TopcoatError
from topcoat.recipe.load import recipe_from_dict


class By(StrEnum):
    """What every part should have in the same shares."""

    label = "label"
    length = "length"
    nothing = "nothing"


def command(
    file: Annotated[Path, typer.Argument(help="file of rows")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as data.format=alpaca")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to make; refused if it is there")] = ...,  # type: ignore[assignment]
    train: Annotated[float, typer.Option(help="share of the rows to train on")] = 0.8,
    validation: Annotated[float, typer.Option(help="share to choose settings by")] = 0.1,
    test: Annotated[float, typer.Option(help="share to look at once, at the end; 0 for none")] = 0.1,
    by: Annotated[By | None, typer.Option(help="keep these shares in each part; label where there are labels")] = None,
    seed: Annotated[int, typer.Option(min=0, help="another seed is another split")] = 42,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> int:
    """Split a file by groups of near-duplicates, so that no row of one part nearly stands in another."""
    console = make_console(json)
    if out.exists():
        raise TopcoatError(f"{out} exists already", "--out", "name a folder that is not there; nothing is overwritten")

    from topcoat.cli.waiting import waiting
    from topcoat.data.checks.fix import write_rows
    from topcoat.data.checks.reading import likely_objective
    from topcoat.data.split import manifest, split
    from topcoat.files import publish_directory, sha256_file
    from topcoat.runs.folder import write_json

    smallest = {"model": {"path": "-"}, "data": {"train": str(file), "validation": None}, "output": "-"}
    recipe = recipe_from_dict(smallest, "the command line", overrides or [], check_files=False)
    settings, objective = recipe.data, str(recipe.train.objective)
    shares = {"train": train, "validation": validation, "test": test}
    with waiting(console) as tell:
        if objective == "sft":
            objective, _ = likely_objective(settings, tell)
        made = split(settings, shares, objective=objective, by=by.value if by else None, seed=seed, tell=tell)
        with publish_directory(out) as folder:
            files = {}
            for part in made.parts:
                path = folder / f"{part.name}.jsonl"
                write_rows(path, ".jsonl", [row.values for row in part.rows])
                files[part.name] = (path.name, sha256_file(path))
            told = manifest(made, file, sha256_file(file), files, seed)
            write_json(folder / "manifest.json", told)
    for part in made.parts:
        console.print(f"{part.name:<11}{len(part.rows):>9,} rows  {out / files[part.name][0]}", markup=False)
    together = sum(len(lines) for _, lines in made.together)
    console.print(
        f"{together:,} rows have near-duplicates, {len(made.together):,} groups of them, each kept on one side; "
        f"stratified by {made.by}; manifest: {out / 'manifest.json'}",
        markup=False,
    )
    if json:
        print_json({"folder": out, **told})
    return 0
