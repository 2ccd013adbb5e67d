"""The table ROW_FORMATS, and how a file's format is found: named in the recipe, or recognised from the columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.formats import alpaca, messages, preference, prompt_completion, sharegpt, text, unpaired
from topcoat.data.lines import names
from topcoat.data.preferences import LabelledAnswer, PreferencePair
from topcoat.data.rows import BadRows, Row
from topcoat.errors import TopcoatError

Kind = Literal["conversation", "pair", "label"]
Parsed = Conversation | PreferencePair | LabelledAnswer


class RowFormat(NamedTuple):
    """recognise(columns) says whether a row with these columns is of the format; the columns are what it reads.

    `kind` is what `parse` makes of a row: a Conversation, a PreferencePair or a LabelledAnswer.
    """

    recognise: Callable[[set[str]], bool]
    parse: Callable[[Row], Any]
    columns: tuple[str, ...]
    kind: Kind = "conversation"

    def to_conversation(self, row: Row) -> Conversation:
        """The row as a conversation.

        Raises:
            BadRow: the row is wrong, has an image or a sound, or is a preference and no conversation.
        """
        if self.kind != "conversation":
            raise BadRow(*_for_preferences(self.kind, row.values))
        refuse_media(row.values, self.columns)
        conversation: Conversation = self.parse(row)
        return conversation


# In the order of recognition: a file with both `messages` and a rendered `text` column is taken as messages.
ROW_FORMATS: dict[str, RowFormat] = {
    "preference": RowFormat(preference.recognise, preference.to_pair, preference.COLUMNS, "pair"),
    "unpaired": RowFormat(unpaired.recognise, unpaired.to_labelled, unpaired.COLUMNS, "label"),
    "messages": RowFormat(messages.recognise, messages.to_conversation, messages.COLUMNS),
    "sharegpt": RowFormat(sharegpt.recognise, sharegpt.to_conversation, sharegpt.COLUMNS),
    "alpaca": RowFormat(alpaca.recognise, alpaca.to_conversation, alpaca.COLUMNS),
    "prompt_completion": RowFormat(
        prompt_completion.recognise, prompt_completion.to_conversation, prompt_completion.COLUMNS
    ),
    "text": RowFormat(text.recognise, text.to_conversation, text.COLUMNS),
}
READ = {"system", "tools", "input"}.union(*(form.columns for form in ROW_FORMATS.values()))
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def recognise(columns: set[str]) -> str | None:
    """The first format that reads rows with these columns, or None."""
    return next((name for name, form in ROW_FORMATS.items() if form.recognise(columns)), None)


def recognise_row(row: Row) -> str | None:
    """The format of one row. A `label` that is not true or false is a class, not a preference."""
    columns = set(row.values)
    return recognise(columns - {name for name in unpaired.LABELS if not unpaired.is_label(row.values.get(name))})


def to_conversations(
    rows: list[Row], form: str, columns: dict[str, str], notes: list[str] | None = None
) -> tuple[str, list[Conversation]]:
    """Every row as a conversation, with the name of the format that was taken.

    `form` is a name of ROW_FORMATS or "auto"; `columns` renames, {what the format reads: what the file has}. What is
    odd about rows that can be trained is counted, and appended to `notes` as sentences that begin "warning:".

    Raises:
        TopcoatError: the format is not recognised, rows of several formats are mixed, or rows are wrong (gathered).
    """
    name, parsed = parse_rows(rename(rows, columns), form, "conversation", notes)
    return name, [row for row in parsed if isinstance(row, Conversation)]


def parse_rows(rows: list[Row], form: str, kind: Kind, notes: list[str] | None = None) -> tuple[str, list[Parsed]]:
    """Every row parsed as `kind`, with the name of the format that was taken; as `to_conversations`, without renames.

    Raises:
        TopcoatError: the format is not recognised or of another kind, formats are mixed, or rows are wrong (gathered).
    """
    name = recognise_first(rows[0], form, kind)
    bad, found, doubts = BadRows(), [], Counter[str]()
    first: dict[str, str] = {}
    for row in rows:
        try:
            if form == "auto":
                refuse_another(name, row, rows[0])
            refuse_media(row.values, ROW_FORMATS[name].columns)
            parsed: Parsed = ROW_FORMATS[name].parse(row)
        except BadRow as error:
            bad.add(row.place, error.what, error.fix)
            continue
        found.append(parsed)
        for doubt in parsed.doubts:
            doubts[doubt] += 1
            first.setdefault(doubt, row.place)
    bad.raise_if_any()
    if notes is not None:
        notes += [f"warning: {count:,} rows: {doubt} (first: {first[doubt]})" for doubt, count in doubts.items()]
    return name, found


def recognise_first(row: Row, form: str = "auto", kind: Kind = "conversation") -> str:
    """The format of a file by its first row, or as named.

    Raises:
        TopcoatError: no format reads these columns, or it is of another kind than is trained.
    """
    name = form if form != "auto" else recognise_row(row)
    if name is None:
        of_kind = {name: form.columns for name, form in ROW_FORMATS.items() if form.kind == kind}
        shapes = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in of_kind.items())
        what = f"{row.place}: the columns {names(row.values) or '(none)'} are of no known format ({shapes})"
        raise TopcoatError(what, row.file, f"rename them with data.columns, such as {_renames(row)}")
    its = ROW_FORMATS[name].kind
    if its == kind:
        return name
    if kind == "conversation":
        what, fix = _for_preferences(its, row.values)
        raise TopcoatError(f"{row.place}: {what}", row.file, fix)
    needed = "prompt, chosen and rejected" if kind == "pair" else "prompt, completion and label"
    what = f"{row.place}: this row is {name}; the objective trains {'pairs' if kind == 'pair' else 'labelled answers'}"
    raise TopcoatError(what, row.file, f"give rows with {needed}")


def _renames(row: Row) -> str:
    """A data.columns to try: names that differ only in case and white space from those of a format, or an example."""
    plain = {str(name).strip().lower(): name for name in row.values}
    for form in ROW_FORMATS.values():
        if form.recognise(set(plain)):
            pairs = (f"{name}: {str(plain[name])!r}" for name in form.columns if plain.get(name, name) != name)
            return f"{{{', '.join(pairs)}}}"
    return "{prompt: question, completion: answer}"


def _for_preferences(kind: Kind, values: dict[str, Any]) -> tuple[str, str]:
    """What a preference row is to supervised tuning, and how its good answer can be trained all the same."""
    if kind == "label":
        what = f"these are preference rows ({names(values)}): answers labelled wanted or not, for an objective like KTO"
        return f"{what}; sft would train the unwanted ones too", "keep the rows whose label is true, without the label"
    what = f"these are preference rows ({names(values)}): two answers to a prompt, for an objective like DPO"
    answer = values.get("chosen")
    for field, mapped in (("prompt", "completion"), ("instruction", "output")):
        if isinstance(answer, str) and isinstance(values.get(field), str):
            return f"{what}; sft trains one", f"to train the chosen ones, set data.columns: {{{mapped}: chosen}}"
    if isinstance(answer, list) and len(answer) > 1:
        return f"{what}; sft trains one", "to train the chosen ones, set data.columns: {messages: chosen}"
    fix = "to train the chosen ones, write each as a conversation that ends in the chosen answer"
    return f"{what}; sft trains one", fix


def refuse_media(values: dict[str, Any], columns: tuple[str, ...]) -> None:
    """Raises BadRow for a chat with an image, a sound or a video beside it. Plain text stands without."""
    if columns == text.COLUMNS:
        return
    if values.keys().isdisjoint(MEDIA):
        return
    for name in MEDIA:
        if values.get(name):
            what = f'the row has "{name}": it is multi-modal, and only text is trained'
            raise BadRow(what, "use rows of text; or delete the column, if the text stands without it")


def refuse_another(name: str, row: Row, first: Row) -> None:
    """Raises BadRow for a row whose columns are of another format than `name`, that of the `first` row."""
    if ROW_FORMATS[name].kind == "conversation" and ROW_FORMATS[name].recognise(set(row.values)):
        return
    other = recognise_row(row)
    if other is not None and other != name:
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
