"""Reading: how the rows of a file become what is checked: as their format says, or as an objective learns them.

A labelled row is a text and what is said of it: the text stands as the prompt, the label (or the numbers) as the
answer, so that balance, contradictions and copies are looked for in what the run will learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from topcoat.data.columns import Columns, columns_of
from topcoat.data.conversation import BadRow
from topcoat.data.labels import LABELLED, label_text, read_labels
from topcoat.data.lines import names
from topcoat.data.plain_rows import require_text
from topcoat.data.progress import Tell, silent
from topcoat.data.row_formats import ROW_FORMATS, Kind, Parsed, parse_rows, recognise_row
from topcoat.data.rows import BadRows, Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError


@dataclass(frozen=True)
class Reading:
    """The format ("auto" is found at the first row), the columns, and for labelled rows the objective.

    `label` says what is said of a row, from its values as the file has them, in `label_columns`; `table` are the names
    of the labels that the run learns.
    """

    form: str = "auto"
    columns: Columns = field(default_factory=Columns)
    objective: str = "sft"
    label: Callable[[dict[str, Any]], str] | None = None
    table: tuple[str, ...] | None = None
    label_columns: tuple[str, ...] = ()

    def parse(self, rows: Sequence[Row], form: str) -> tuple[str, list[Parsed]]:
        """The rows of one file, parsed, and the format that was taken.

        Raises:
            TopcoatError: a row is none of the format.
        """
        file = rows[0].file
        try:
            renamed = [Row(self.columns.apply(row.values), row.file, row.line) for row in rows]
            kind = ROW_FORMATS[form].kind if form != "auto" else _kind(renamed[0])
            return parse_rows(renamed, form, kind)
        except BadRow as error:
            raise TopcoatError(error.what, file, error.fix) from error

    def said_of(self, rows: Iterable[Row]) -> list[str | None]:
        """The label or the numbers of each row, in words; None where the rows have none.

        Raises:
            TopcoatError: a row whose label is missing or none (gathered).
        """
        bad, found = BadRows(), list[str | None]()
        for row in rows:
            try:
                found.append(None if self.label is None else self.label(row.values))
            except KeyError as error:
                bad.add(row.place, f'"{error.args[0]}" is missing; the row has {names(row.values) or "no fields"}')
            except ValueError as error:
                bad.add(row.place, f"{' and '.join(map(repr, self.label_columns))} {error}")
        bad.raise_if_any()
        return found

    def named(self, form: str) -> str:
        """What the rows are, said to people."""
        return form if self.label is None else self.objective


def _kind(row: Row) -> Kind:
    """What rows like this one are: preference rows are checked as well, by their good answers."""
    name = recognise_row(row)
    return "conversation" if name is None else ROW_FORMATS[name].kind


def reading_of(settings: DataSettings, objective: str, tell: Tell = silent) -> Reading:
    """How a run that learns `objective` reads the files of `settings`.

    Raises:
        TopcoatError: as such a run would, for columns, a format that the objective does not learn, or labels of the
            training rows. A label that only validation rows have is for a check to find.
    """
    columns = columns_of(settings)
    if objective == "sft":
        return Reading(settings.format, columns)
    form = require_text(settings, columns, objective)
    if objective not in LABELLED:
        return Reading(form, columns, objective)
    if objective == "classification":
        table = read_labels(_training_only(settings), objective, tell).names
    else:
        read_labels(settings, objective, tell)
        table = None
    said_in = tuple(settings.columns.get(name, name) for name in settings.label_columns)
    return Reading(form, columns, objective, label_text(settings, objective), table, said_in)


def _training_only(settings: DataSettings) -> DataSettings:
    return settings.model_copy(update={"validation": None})


def likely_objective(settings: DataSettings, tell: Tell = silent) -> tuple[str, str]:
    """What a file given without a recipe is for: "classification" where its texts have labels, else "sft".

    The second is why rows that seem to have labels are read without them, or nothing.

    Raises:
        TopcoatError: the file cannot be read.
    """
    if settings.format not in ("auto", "text") or settings.text_template is not None:
        return "sft", ""
    first = next(iter_rows(settings.train))
    column = settings.columns.get(settings.label_columns[0], settings.label_columns[0])
    values = Columns(settings.columns).apply(first.values)
    if recognise_row(Row(values, first.file, first.line)) != "text" or not isinstance(
        first.values.get(column), str | int
    ):
        return "sft", ""
    try:
        read_labels(_training_only(settings), "classification", tell)
        if isinstance(settings.validation, str):
            held_out = Reading(label=label_text(settings, "classification"), label_columns=(column,))
            held_out.said_of(iter_rows(settings.validation))
    except TopcoatError as error:
        return "sft", f"{column!r} is not checked as a label: {error.problems[0].what}"
    return "classification", ""
