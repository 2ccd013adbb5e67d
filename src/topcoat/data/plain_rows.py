"""Objectives that learn plain texts: are the rows of a file such texts, and if not, what to type."""

from __future__ import annotations

from topcoat.data.columns import Columns
from topcoat.data.conversation import BadRow
from topcoat.data.lines import names
from topcoat.data.row_formats import recognise_row
from topcoat.data.rows import Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError

LIKELY = ("content", "document", "sentence", "body", "input", "review", "question", "prompt", "instruction")
"""Columns that hold the text of a row in many data sets."""


def require_text(settings: DataSettings, columns: Columns, objective: str) -> str:
    """The format of the rows, "text". Looks at the first row of each file.

    Raises:
        TopcoatError: data.format names another one, a file's first row has no text, or data.overlong is split where a
            text has one label.
    """
    if settings.format not in ("auto", "text"):
        what = f"data.format is {settings.format}, but train.objective: {objective} learns plain texts"
        raise TopcoatError(what, "data.format", "take it out, and name the column of the text: data.columns: {text: …}")
    if settings.overlong == "split" and objective != "completion":
        what = f"data.overlong is split, but train.objective: {objective} has one label for a whole text, not for parts"
        raise TopcoatError(what, "data.overlong", "write drop or truncate, or raise data.max_length")
    validation = [settings.validation] if isinstance(settings.validation, str) else []
    for file in [file for file, _ in settings.train_files] + validation:
        first = next(iter_rows(file))
        try:
            values = columns.apply(first.values)
        except BadRow:  # the text template's own word on it is better
            continue
        if "text" not in values:
            columns.require(map(str, first.values), file)
            raise _no_text(first, objective)
    return "text"


def _no_text(first: Row, objective: str) -> TopcoatError:
    form = recognise_row(first)
    said = f"these rows are {form} ({names(first.values)})" if form else f"the columns are {names(first.values)}"
    likely = next((name for name in LIKELY if isinstance(first.values.get(name), str)), "body")
    fix = f"name the column of the text: data.columns: {{text: {likely}}}"
    if form and objective == "completion":
        fix = f"write train.objective: sft to learn their answers; or {fix}"
    return TopcoatError(f'{first.place}: there is no "text": {said}', first.file, fix)
