"""The rows of a recipe as the model will get them, without a model in memory: what `topcoat data show` shows.

Rows go the way of a run: `load_data` makes the examples, the run's own plan of steps chooses and collates them. One row
of the file, asked for by its line, goes the same way alone, so that it can be looked at in a file that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from topcoat.data.batches import packed, padded
from topcoat.data.columns import Columns
from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.labels import LABELLED, Labels, label_text
from topcoat.data.load import Dataset, load_data
from topcoat.data.overlong import WINDOW, choose_max_length, manner_of, shorten
from topcoat.data.progress import Bar
from topcoat.data.render import DOCUMENT, Example, Renderer
from topcoat.data.row_formats import to_conversations
from topcoat.data.rows import Row, iter_rows, place
from topcoat.data.settings import DataSettings
from topcoat.data.token_texts import TokenTexts
from topcoat.data.view import DROPPED, Document, ShownRow, documents, dropped
from topcoat.errors import Problem, TopcoatError
from topcoat.model.load import context_length
from topcoat.model.source import open_source
from topcoat.model.tokenizers import set_chat_template
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.recipe.schema import Recipe
from topcoat.runs.opening import RunSteps
from topcoat.runs.room import room_for_text

CUT = "truncated: its end is longer than data.max_length"


def read_as(recipe: Recipe) -> tuple[str, str]:
    """The format of the recipe's rows and what is trained of them (as data.loss_on), as its objective reads them."""
    if recipe.train.objective == "sft":
        return recipe.data.format, recipe.data.loss_on
    return "text", DOCUMENT if recipe.train.objective in LABELLED else "all"


@dataclass(frozen=True)
class Opened:
    """What is needed of a model to show its data: no weights."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int
    vocab_rows: int | None


def open_tokenizer(recipe: Recipe) -> Opened:
    """The tokenizer of the recipe's model with the one chat template in effect.

    Raises TopcoatError if the model is not there or brings no tokenizer.
    """
    source = open_source(recipe.model)
    tokenizer = source.tokenizer()
    set_chat_template(tokenizer, recipe.model.chat_template)
    return Opened(
        tokenizer, room_for_text(context_length(source.config), recipe), source.config.get_text_config().vocab_size
    )


def load_for(recipe: Recipe, opened: Opened, bar: Bar | None = None) -> Dataset:
    """The recipe's examples as its run loads them. Raises TopcoatError or Refused where `train` would, for the data."""
    return load_data(
        recipe.data,
        opened.tokenizer,
        context_length=opened.context_length,
        seed=recipe.seed,
        objective=recipe.train.objective,
        vocab_rows=opened.vocab_rows,
        bar=bar,
    )


def shown_rows(recipe: Recipe, opened: Opened, most: int, bar: Bar | None = None) -> Iterator[ShownRow]:
    """The first `most` rows of the run's batches, in the order of its steps. `bar` shows the reading of long files.

    Raises TopcoatError or Refused where `train` would, for the data.
    """
    data = load_for(recipe, opened, bar)
    steps = RunSteps(data, recipe, micro_batch_tokens(recipe.train.micro_batch_tokens, data.max_length))
    texts, cut = TokenTexts(opened.tokenizer), set(data.report.events["truncated"])
    left = most
    for step in range(steps.total):
        for number, batch in enumerate(steps.micro_batches(step), start=1):
            for found, filling in documents(batch, data.train, texts):
                if not left:
                    return
                left -= 1
                for document, index in zip(found, batch.rows, strict=False):
                    if data.labels is not None:
                        document.notes.append(_said(data.labels, data.train.answers(np.array([index]))[0], recipe.data))
                    if document.place in cut:
                        _add_cut(document, data, index, texts)
                yield ShownRow(f"step {step + 1}, micro batch {number}", found, filling)


def _add_cut(document: Document, data: Dataset, index: int, texts: TokenTexts) -> None:
    """The end that was cut off, dropped: the rest of the whole row."""
    whole = data.train.uncut(index)
    document.tokens += dropped(whole.input_ids[data.train.lengths[index] :], texts)
    document.notes.append(CUT)


def rows_at(recipe: Recipe, opened: Opened, line: int) -> list[ShownRow]:
    """The row at `line` of each training file that has one, as `shown_row`.

    Raises TopcoatError where no file has one, or a row is refused.
    """
    found: list[Row] = []
    missing: list[Problem] = []
    for file, _ in recipe.data.train_files:
        try:
            found.append(_find(file, line))
        except TopcoatError as error:
            missing += error.problems
    if not found:
        raise TopcoatError.gather(missing)
    return [shown_row(recipe, opened, row) for row in found]


def shown_row(recipe: Recipe, opened: Opened, row: Row | int) -> ShownRow:
    """A row, or the one at a line of the (first) training file (of a Parquet file: its number), collated alone.

    Raises TopcoatError for a line that is no row, or a row that the format or the template refuses.
    """
    settings = recipe.data
    row = _find(settings.train_files[0][0], row) if isinstance(row, int) else row
    renderer = Renderer(opened.tokenizer, allow=settings.allow)
    form, loss_on = read_as(recipe)
    example = renderer.encode(_conversation(row, settings, form), loss_on, row)
    texts = TokenTexts(opened.tokenizer)
    windowed = recipe.train.objective == "completion"
    limit = choose_max_length(
        settings.max_length, len(example.input_ids), opened.context_length, WINDOW if windowed else None
    )
    title, notes = f"{row.place}, collated alone", _labels_of(row, recipe)
    if len(example.input_ids) <= limit:
        return _alone(title, [example], notes, texts, settings.packing)
    if settings.overlong == "split":
        pieces = shorten(example, limit, manner_of("split", recipe.train.objective))
        return _alone(title, pieces, ["split at data.max_length"], texts, settings.packing)
    if settings.overlong == "truncate":
        shown = _alone(title, shorten(example, limit, "truncate"), [*notes, CUT], texts, settings.packing)
        shown.documents[-1].tokens += dropped(example.input_ids[limit:], texts)
        return shown
    done = "left out" if settings.overlong == "drop" else "train refuses it"
    note = f"longer than data.max_length ({limit:,}): {done} (data.overlong: {settings.overlong})"
    return ShownRow(title, [Document(row.place, dropped(example.input_ids, texts), [note])])


def _labels_of(row: Row, recipe: Recipe) -> list[str]:
    """What the row is labelled with, where that is learned. Raises TopcoatError for a label that is none."""
    settings, objective = recipe.data, recipe.train.objective
    if objective not in LABELLED:
        return []
    try:
        return [f"{' and '.join(settings.label_columns)}: {label_text(settings, objective)(row.values)}"]
    except KeyError as error:
        raise TopcoatError(f'{row.place}: "{error.args[0]}" is missing', row.file, "name data.label_columns") from error
    except ValueError as error:
        raise TopcoatError(f"{row.place}: {' and '.join(settings.label_columns)} {error}", row.file) from error


def _said(labels: Labels, answer: NDArray[np.float64], settings: DataSettings) -> str:
    """What an example is labelled with, in the words of `_labels_of`."""
    numbers = ", ".join(f"{number:g}" for number in answer)
    label = labels.names[int(answer[0])] if labels.objective == "classification" else numbers
    return f"{' and '.join(settings.label_columns)}: {label}"


def _conversation(row: Row, settings: DataSettings, form: str) -> Conversation:
    """Raises TopcoatError naming the row, if it is none of its format."""
    try:
        mapped = replace(row, values=Columns(settings.columns, settings.text_template).apply(row.values))
    except BadRow as error:
        raise TopcoatError(f"{row.place}: {error.what}", row.file, error.fix) from error
    return to_conversations([mapped], form, {})[1][0]


def _find(file: str, line: int) -> Row:
    """The row at `line`, with no more of the file in memory than one row."""
    numbers: list[int] = []
    for row in iter_rows(file):
        if row.line == line:
            return row
        numbers = [*numbers[:1], row.line]
    first, last = numbers[0], numbers[-1]
    what = f"--row {line:,}: there is no such row; the first is {place(file, first)}, the last {place(file, last)}"
    raise TopcoatError(what, file, f"give a number from {first} to {last}")


def _alone(title: str, pieces: list[Example], notes: list[str], texts: TokenTexts, packing: bool) -> ShownRow:
    """The examples made of one row, each as it is collated; one that trains nothing is left out of the run."""
    shown = ShownRow(title, [])
    for example in pieces:
        ((found, filling),) = documents((packed if packing else padded)([example], [0]), [example], texts)
        document = replace(found[0], notes=list(notes))
        if not example.n_target_tokens:
            document.tokens = [token._replace(kind=DROPPED) for token in document.tokens]
            document.notes.append("no trained token: left out")
        shown.documents.append(document)
        shown.filling += filling
    return shown
