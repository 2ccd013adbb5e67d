"""topcoat plan: will it fit, how long, and what to change, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json, print_notes


def command(
    subject: Annotated[
        str, typer.Argument(metavar="RECIPE", help="YAML file; or a model: a directory, a .gguf file, a known name")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as train.micro_batch_tokens=1024")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or a device such as rtx4090", metavar="NAME")] = "auto",
    budget: Annotated[
        str | None, typer.Option(help="memory the run may take, such as 6GiB; else what is free", metavar="SIZE")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="2.49EUR/h or 0.30EUR/kWh: what the run costs", metavar="PRICE")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="run two micro-steps on the longest rows first, in a child process")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> int:
    """Say what a recipe takes, line by line, whether it fits, and how long it runs; exit code 1 if it does not fit.

    Only the model's config.json (or GGUF header) is read, or nothing where the model is known by name.
    """
    from topcoat.cli.process import prepare_process
    from topcoat.runs.planning import plan

    console = make_console(json)
    if measure:
        prepare_process(None, console)
    made = plan(
        subject,
        overrides or [],
        device=device,
        budget=budget,
        price=price,
        measure=measure,
        say=lambda text: console.print(text, style="dim", markup=False),
    )
    if json:
        print_json(made.as_json())
    else:
        from topcoat.cli.plan_table import bar, bill_table, facts_table, ways_table

        console.print(facts_table(made))
        console.print(bar(made.estimate, min(console.width, 100)))
        console.print(bill_table(made.estimate))
        console.print(ways_table(made))
        print_notes(made.notes, console)
    return 0 if made.estimate.fits else 1
