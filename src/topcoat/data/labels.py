"""Labels: what each row of a file says of its text, for the objectives that learn one label or some numbers of it.

The table of labels comes from the training rows (or from data.labels, in its order); names that are whole numbers stand
in numeric order, others in that of their characters. A label is kept as its number, a target as it is: (rows, K)
float64, K = 1 for labels. Texts become tokens elsewhere; here only the label columns are read.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.data.lines import describe, names
from topcoat.data.progress import Tell, silent, told
from topcoat.data.rows import BadRows, Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError

LABELLED = ("classification", "regression")
"""Objectives whose rows have a label or numbers."""
FEW = 50
"""Different labels below which no share of the rows is suspicious."""
FAR = 10.0
"""A target this far from zero, or this spread, takes a linear head without a bias long to reach."""


@dataclass(frozen=True)
class Labels:
    """What a run's rows are labelled with: the names of the labels, or of the numbers, in the order of the head."""

    objective: str
    names: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    """File -> what each of its rows is labelled with (rows, K)."""
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """K of the head: one output for each label, or for each number."""
        return len(self.names)


def read_labels(settings: DataSettings, objective: str, tell: Tell = silent) -> Labels:
    """The labels of all rows of the files that `settings` name.

    Raises:
        TopcoatError: a column is missing, a label or number is none, only one label is there, or a label of the
            validation file is not among those of the training files.
    """
    columns = [settings.columns.get(name, name) for name in settings.label_columns]
    training = [file for file, _ in settings.train_files]
    held_out = [settings.validation] if isinstance(settings.validation, str) else []
    if objective == "regression":
        return _numbers(columns, training, held_out, tell)
    if len(columns) != 1:
        what = f"data.label_columns names {len(columns)} columns; classification learns one label of each row"
        raise TopcoatError(what, "data.label_columns", "name one column, or write objective: regression for numbers")
    return _classes(columns[0], training, held_out, settings.labels, tell)


def _classes(
    column: str, training: Sequence[str], held_out: Sequence[str], given: list[str] | None, tell: Tell
) -> Labels:
    read: Callable[[Any], str] = (lambda value: _name_of(value, given)) if given is not None else _name_of
    said = {file: _column(file, [column], lambda values: read(values[0]), tell) for file in (*training, *held_out)}
    counts = Counter(label for file in training for label in said[file])
    table = tuple(given) if given is not None else tuple(_ordered(counts))
    if given is None:
        _check_table(counts, column, training[0])
    number = {name: at for at, name in enumerate(table)}
    for file, labels in said.items():
        _refuse_unknown(file, labels, number, given is not None)
    notes = [f"labels: {len(table)}, from {'data.labels' if given is not None else column!r}: {names(table)}"]
    notes += [f"warning: no training row has the label {name!r}" for name in table if not counts[name]]
    notes += _alike(counts)
    values = {f: np.array([[number[label]] for label in found], np.float64) for f, found in said.items()}
    return Labels("classification", table, values, tuple(notes))


def label_text(settings: DataSettings, objective: str) -> Callable[[dict[str, Any]], str]:
    """What a row's values say of its text, in words: the name of its label, or its numbers.

    What is returned raises ValueError or KeyError for rows that `read_labels` refuses.
    """
    columns = [settings.columns.get(name, name) for name in settings.label_columns]
    if objective == "classification":
        return lambda values: _name_of(values[columns[0]], settings.labels)
    return lambda values: ", ".join(f"{number:g}" for number in _numbers_of([values[name] for name in columns]))


def _name_of(value: Any, given: list[str] | None = None) -> str:
    """The name of a label. Raises ValueError saying what is wrong with it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        name = str(value)
    elif isinstance(value, str):
        name = value.strip()
        if not name:
            raise ValueError("is empty; expected the name of a label")
    else:
        hint = "; for numbers write train.objective: regression" if isinstance(value, float) else ""
        hint = "; one label a row is learned, not several" if isinstance(value, list) else hint
        raise ValueError(f"is {describe(value)}; expected a label: text or a whole number{hint}")
    if given is not None and name not in given and name.isdecimal() and int(name) < len(given):
        return given[int(name)]  # numbers of the names, from 0, as data sets with a list of names beside them have
    return name


def _ordered(found: Iterable[str]) -> list[str]:
    labels = list(found)
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _check_table(counts: Counter[str], column: str, file: str) -> None:
    if len(counts) == 1:
        label = next(iter(counts))
        what = f"every row has the label {label!r} in {column!r}: there is nothing to tell apart"
        raise TopcoatError(what, file, "add rows with other labels, or name another column in data.label_columns")
    if len(counts) > max(FEW, counts.total() / 2):
        what = f"{column!r} has {len(counts):,} different labels in {counts.total():,} rows: it is no column of labels"
        raise TopcoatError(
            what, file, "name another one in data.label_columns; for numbers, train.objective: regression"
        )


def _refuse_unknown(file: str, labels: list[str], number: dict[str, int], given: bool) -> None:
    if number.keys() >= set(labels):
        return
    bad = BadRows()
    source = "data.labels" if given else "the labels of the training rows"
    for row, label in zip(iter_rows(file), labels, strict=True):
        if label not in number:
            near = difflib.get_close_matches(label, number, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            bad.add(row.place, f"the label {label!r} is not among {source}", f"{hint}they are {names(number)}")
    bad.raise_if_any()


def _alike(counts: Counter[str]) -> list[str]:
    """Labels that differ in case or blanks only: mostly one label written in two ways."""
    first: dict[str, str] = {}
    notes = []
    for label, _ in counts.most_common():
        plain = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        main = first.setdefault(plain, label)
        if main != label:
            notes.append(f"warning: the labels {main!r} and {label!r} differ in case or blanks only")
    return notes


def _numbers(columns: list[str], training: Sequence[str], held_out: Sequence[str], tell: Tell) -> Labels:
    width: list[int] = []

    def read(values: list[Any]) -> list[float]:
        numbers = _numbers_of(values)
        width.append(len(numbers)) if not width else None
        if len(numbers) != width[0] or not numbers:
            raise ValueError(f"has {len(numbers)} numbers; the first row has {width[0]}")
        return numbers

    said = {file: _column(file, columns, read, tell) for file in (*training, *held_out)}
    values = {file: np.array(found, np.float64) for file, found in said.items()}
    learned = np.concatenate([values[file] for file in training])
    K = learned.shape[1]
    table = columns if len(columns) == K else [f"{columns[0]}[{at}]" for at in range(K)]
    notes = []
    for name, column in zip(table, learned.T, strict=True):
        if len(column) > 1 and column.min() == column.max():
            what = f"every row has the number {column[0]:g} in {name!r}: there is nothing to learn"
            raise TopcoatError(what, training[0], "name another column in data.label_columns")
        mean, spread = float(column.mean()), float(column.std())
        notes.append(f"numbers: {name!r}, {column.min():g} to {column.max():g}, mean {mean:.4g}, spread {spread:.4g}")
        if abs(mean) > FAR or spread > FAR:
            what = f"warning: {name!r} lies around {mean:.4g} with a spread of {spread:.4g}"
            notes.append(f"{what}: scale it to mean 0 and spread 1 in the data, the head has no bias to reach it with")
    return Labels("regression", tuple(table), values, tuple(notes))


def _numbers_of(values: list[Any]) -> list[float]:
    """The numbers of one row: of several columns, or of one that lists them. Raises ValueError."""
    listed = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return [_number(value) for value in listed]


def _number(value: Any) -> float:
    """A finite number, also one written as text, as CSV does. Raises ValueError saying what is wrong with it."""
    found = math.nan
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            raise ValueError(f"is {describe(value)}; expected a number") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    else:
        raise ValueError(f"is {describe(value)}; expected a number")
    if not math.isfinite(found):
        raise ValueError(f"is {describe(value)}; expected a finite number")
    return found


def _column(file: str, columns: list[str], read: Callable[[list[Any]], Any], tell: Tell) -> list[Any]:
    """What `read` makes of the values of `columns` in each row; all rows that are wrong are said together."""
    bad, found = BadRows(), []
    present: set[str] = set()
    missing = False
    for row in told(iter_rows(file), f"reading the labels of {Path(file).name}", tell):
        present.update(map(str, row.values))
        try:
            found.append(read([_value(row, name) for name in columns]))
        except KeyError as error:
            missing = True
            bad.add(row.place, f'"{error.args[0]}" is missing; the row has {names(row.values) or "no fields"}')
        except ValueError as error:
            bad.add(row.place, f"{' and '.join(map(repr, columns))} {error}")
    for name in columns if missing else ():
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = f"data.label_columns: [{near[0] if near else sorted(present)[-1]}]"
            what = f"no row has the column {name!r}, which holds the labels; the columns are {names(sorted(present))}"
            raise TopcoatError(what, file, f"name the column of the labels, such as {hint}")
    bad.raise_if_any()
    return found


def _value(row: Row, name: str) -> Any:
    if name not in row.values:
        raise KeyError(name)
    return row.values[name]
