"""The table ROW_FORMATS, and how a file's format is found: named in the recipe, or recognised from the columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.formats import alpaca, messages, prompt_completion, sharegpt, text
from topcoat.data.rows import BadRows, Row
from topcoat.errors import TopcoatError


class RowFormat(NamedTuple):
    """recognise(columns) says whether a row with these columns is of the format; the columns are what it reads."""

    recognise: Callable[[set[str]], bool]
    to_conversation: Callable[[Row], Conversation]
    columns: tuple[str, ...]


# In the order of recognition: a file with both `messages` and a rendered `text` column is taken as messages.
ROW_FORMATS: dict[str, RowFormat] = {
    "messages": RowFormat(messages.recognise, messages.to_conversation, messages.COLUMNS),
    "sharegpt": RowFormat(sharegpt.recognise, sharegpt.to_conversation, sharegpt.COLUMNS),
    "alpaca": RowFormat(alpaca.recognise, alpaca.to_conversation, alpaca.COLUMNS),
    "prompt_completion": RowFormat(
        prompt_completion.recognise, prompt_completion.to_conversation, prompt_completion.COLUMNS
    ),
    "text": RowFormat(text.recognise, text.to_conversation, text.COLUMNS),
}
READ = {"system", "tools", "input"}.union(*(form.columns for form in ROW_FORMATS.values()))


def recognise(columns: set[str]) -> str | None:
    """The first format that reads rows with these columns, or None."""
    return next((name for name, form in ROW_FORMATS.items() if form.recognise(columns)), None)


def to_conversations(rows: list[Row], form: str, columns: dict[str, str]) -> tuple[str, list[Conversation]]:
    """Every row as a conversation, with the name of the format that was taken.

    `form` is a name of ROW_FORMATS or "auto"; `columns` renames, {what the format reads: what the file has}.

    Raises:
        TopcoatError: the format is not recognised, rows of several formats are mixed, or rows are wrong (gathered).
    """
    rows = rename(rows, columns)
    name = form if form != "auto" else _recognise_first(rows[0])
    bad, found = BadRows(), []
    for row in rows:
        try:
            if form == "auto":
                _refuse_another(name, row, rows[0])
            found.append(ROW_FORMATS[name].to_conversation(row))
        except BadRow as error:
            bad.add(row.place, error.what, error.fix)
    bad.raise_if_any()
    return name, found


def _recognise_first(row: Row) -> str:
    columns = set(row.values)
    if {"chosen", "rejected"} <= columns or ("messages" in columns and isinstance(row.values.get("label"), bool)):
        what = f"{row.place}: these are preference rows ({', '.join(row.values)}), which are not trained on"
        raise TopcoatError(what, row.file, "keep the good answers only, as messages; or name data.format")
    name = recognise(columns)
    if name is None:
        shapes = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in ROW_FORMATS.items())
        what = f"{row.place}: the columns {', '.join(row.values) or '(none)'} are of no known format ({shapes})"
        fix = "rename them with data.columns, such as {prompt: question, completion: answer}"
        raise TopcoatError(what, row.file, fix)
    return name


def _refuse_another(name: str, row: Row, first: Row) -> None:
    columns = set(row.values)
    if ROW_FORMATS[name].recognise(columns):
        return
    other = recognise(columns)
    if other is not None:
        fix = "put rows of each format into a file of their own"
        raise BadRow(f"this row is {other}, but {first.place} is {name}: formats are mixed", fix)


def rename(rows: list[Row], columns: dict[str, str]) -> list[Row]:
    """Rows whose field `columns[name]` is called `name`.

    Raises:
        TopcoatError: a name no format reads, or a column the file does not have.
    """
    if not columns:
        return rows
    present = {name for row in rows for name in row.values}
    for name, column in columns.items():
        if name not in READ:
            raise TopcoatError(f"no format reads a column {name!r}", "data.columns", f"use {', '.join(sorted(READ))}")
        if column not in present:
            what = f"data.columns names {column!r}, which no row has"
            raise TopcoatError(what, rows[0].file, f"the columns are {', '.join(sorted(map(str, present)))}")
    back = {column: name for name, column in columns.items()}
    # A column of the file that already has the new name is replaced: what the recipe names wins.
    return [
        Row(
            {k: v for k, v in row.values.items() if k not in columns and k not in back}
            | {name: row.values[column] for name, column in columns.items() if column in row.values},
            row.file,
            row.line,
        )
        for row in rows
    ]
