"""topcoat data show: rows as the model gets them, every token trained, context or dropped."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topcoat.cli.output import make_console, print_json, print_notes
from topcoat.cli.overwriting import files_of, require_writable
from topcoat.cli.process import prepare_process
from topcoat.recipe.load import load_recipe_with_notes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from topcoat.cli.live import Terminal
    from topcoat.data.view import ShownRow

IN_THE_TERMINAL, ON_A_PAGE = 3, 1_000


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/chat-qlora.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="such as data.loss_on=last_turn")
    ] = None,
    row: Annotated[
        int | None, typer.Option(min=1, help="show the row at this line of each training file (Parquet: this row)")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="rows of the run's batches to show: 3, or 1,000 on a page")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write a page that stands alone to this file")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> int:
    """Show rows as the collator gives them to the model, tokens coloured by what becomes of them."""
    console = make_console(json)
    settings, notes = load_recipe_with_notes(recipe, overrides or [])
    print_notes(notes, console)
    require_writable({"--html": html}, [recipe, *files_of(settings.data)])
    prepare_process(settings.model.path, console)

    from topcoat.cli.live import Terminal
    from topcoat.data.view import as_json
    from topcoat.runs.showing import open_tokenizer, rows_at, shown_rows

    opened = open_tokenizer(settings)
    most = count or (ON_A_PAGE if html else IN_THE_TERMINAL)
    terminal = Terminal(console)
    rows: Iterable[ShownRow] = (
        rows_at(settings, opened, row) if row is not None else shown_rows(settings, opened, most, terminal.progress)
    )
    if html is not None:
        from topcoat.report.data_page import write_data_page

        if row is None:
            rows = _counted(rows, terminal, most)
        written = write_data_page(html, rows, title=", ".join(file for file, _ in settings.data.train_files))
        console.print(f"{written:,} {'row' if written == 1 else 'rows'} on {html}", markup=False)
        if json:
            print_json({"page": html, "rows": written})
    elif json:
        print_json({"rows": [as_json(shown) for shown in rows]})
    else:
        _print(rows, console)
    return 0


def _counted(rows: Iterable[ShownRow], terminal: Terminal, most: int) -> Iterator[ShownRow]:
    """The rows, with a bar if they take long."""
    from topcoat.data.progress import late_bar

    rows = iter(rows)
    first = list(itertools.islice(rows, 1))  # the bars of reading the data come before this one
    with late_bar(terminal.progress, "rows") as advance:
        for done, row in enumerate(itertools.chain(first, rows), start=1):
            yield row
            advance(done, most)


def _print(rows: Iterable[ShownRow], console: Console) -> None:
    """On a terminal through the user's pager, one row after the other; elsewhere straight out."""
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))  # what is wrong with the data is said before a pager opens
    lines = _lines(itertools.chain(first, rows), in_colour=console.color_system is not None)
    if console.is_terminal and sys.stdin.isatty():
        with console.pager(styles=True):
            for line in lines:
                console.print(line)
    else:
        for line in lines:
            console.print(line)


def _lines(rows: Iterable[ShownRow], in_colour: bool) -> Iterator[RenderableType]:
    """The rows; without colours, marks stand around what is trained and what is dropped."""
    from rich.rule import Rule
    from rich.text import Text

    from topcoat.data.preview import coloured_document, legend, marked_document
    from topcoat.data.view import CONTEXT, DROPPED, TRAINED

    yield legend((TRAINED, CONTEXT, DROPPED)) if in_colour else Text("«trained»  context  ⟦dropped⟧")
    for row in rows:
        yield Rule(Text(row.title), align="left")
        for number, document in enumerate(row.documents):
            if number:
                yield Rule(style="dim")
            yield coloured_document(document) if in_colour else Text(marked_document(document))
        if row.filling:
            yield Text(f"{row.filling:,} positions of filling: nothing sees them", style="dim")
