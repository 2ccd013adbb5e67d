"""load_data: from files of rows to training and validation examples, each step checked and reported.

rows -> conversations -> tokens with labels, kept on disk (`prepare.py`) -> the validation rows held out -> lengths ->
checks that something is trained, that every answer can end, and that the model has an embedding for every token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from topcoat.data.cache import Cache, cache_folder
from topcoat.data.columns import columns_of
from topcoat.data.examples import Examples, Part, Places
from topcoat.data.labels import LABELLED, Labels, read_labels
from topcoat.data.overlong import WINDOW, choose_max_length, fit, manner_of
from topcoat.data.plain_rows import require_text
from topcoat.data.prepare import Preparation, prepare
from topcoat.data.progress import Bar
from topcoat.data.render import DOCUMENT, Renderer
from topcoat.data.report import DataReport
from topcoat.data.rows import BadRows
from topcoat.data.settings import DataSettings
from topcoat.data.store import EMPTY_ANSWER, RESHAPED, SPECIAL_TEXT, STOPS
from topcoat.errors import Refused, TopcoatError

FLAGGED = {"special_text": SPECIAL_TEXT, "reshaped": RESHAPED, "empty_answer": EMPTY_ANSWER}


@dataclass
class Dataset:
    """Examples to train on and to validate with, what became of the rows, and the renderer that made them."""

    train: Examples
    validation: Examples
    report: DataReport
    renderer: Renderer
    max_length: int
    labels: Labels | None = None
    """What the rows are labelled with, where documents and not tokens are what is learned."""

    def label_counts(self) -> list[int]:
        """Training rows of each label (K,)."""
        assert self.labels is not None
        numbers = self.train.answers(np.arange(len(self.train)))[:, 0].astype(np.int64)
        counts: list[int] = np.bincount(numbers, minlength=self.labels.outputs).tolist()
        return counts

    @property
    def weights(self) -> list[float] | None:
        """Of the parts of the training examples in a mixture; None where each row comes once an epoch."""
        found = [part.weight for part in self.train.parts if part.weight is not None]
        return found or None

    def identity(self) -> str:
        """SHA-256 of what decides every token and label that is trained or validated."""
        whole: list[object] = [self.train.identity(), self.validation.identity()]
        if self.labels is not None:
            whole.append(self.labels.names)
        return hashlib.sha256(repr(whole).encode()).hexdigest()


def bytes_of(dataset: Dataset) -> int:
    """Memory a data set holds while it is trained on.

    That is 17 bytes an example, and 24 for the lengths and the order of an epoch. The tokens are on disk: their pages
    are read in as they are needed and given back when the system wants the memory, and are not counted.
    """
    return dataset.train.held_bytes + dataset.validation.held_bytes + 24 * len(dataset.train)


def load_data(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    seed: int,
    objective: str = "sft",
    vocab_rows: int | None = None,
    chat_template: str | None = None,
    bar: Bar | None = None,
    check: Callable[[], None] = lambda: None,
) -> Dataset:
    """Examples of a run that learns `objective`. `vocab_rows` are those of the model's embedding; None leaves token ids
    unchecked.

    `bar` shows what takes over two seconds; `check` is called while another process is waited for, and may raise.

    Raises:
        TopcoatError: a file or its rows are wrong, or examples are too long and data.overlong is "error".
        Refused: nothing would be trained, or the model would never learn to stop.
    """
    read = _read(settings, tokenizer, objective, chat_template, seed, bar, check)
    report, everything, plain = read.report, read.train + read.validation, objective != "sft"
    for event, flag in FLAGGED.items():
        report.events[event] += Places.of(everything.take((everything.column("flags") & flag) != 0))
    if vocab_rows is not None:
        _check_ids(everything, vocab_rows, tokenizer)
    at = int(everything.lengths.argmax())
    report.longest, report.longest_row = int(everything.lengths[at]), everything.place(at)
    windowed = objective == "completion"
    max_length = choose_max_length(settings.max_length, report.longest, context_length, WINDOW if windowed else None)
    train, validation = _of_length(read, settings, max_length, context_length, objective=objective)
    if "no_stop_token" not in settings.allow and not plain:
        _check_stops(train, read.renderer)
    if settings.loss_on != "all" and report.format != "text" and "all_trained" not in settings.allow:
        _check_context(train)
    _count(report, train, validation, read.rows, max_length)
    if windowed:
        report.note_windows(len(everything))
    return Dataset(train, validation, report, read.renderer, max_length, read.labels)


@dataclass
class _Read:
    """Every row as tokens, of any length, the validation rows held out."""

    train: Examples
    validation: Examples
    rows: int
    """Of the training files, those held out among them."""
    labels: Labels | None
    renderer: Renderer
    report: DataReport


def _read(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    chat_template: str | None,
    seed: int,
    bar: Bar | None,
    check: Callable[[], None],
) -> _Read:
    columns = columns_of(settings)
    renderer = Renderer(tokenizer, chat_template, settings.allow)
    plain = objective != "sft"  # rows are plain texts
    form = require_text(settings, columns, objective) if plain else settings.format
    labels = read_labels(settings, objective) if objective in LABELLED else None
    loss_on = settings.loss_on if not plain else "all" if labels is None else DOCUMENT
    preparation = Preparation(tokenizer, chat_template, renderer, form, columns, loss_on, settings.allow)
    notes: list[str] = []
    cache = Cache(cache_folder() / "data" if settings.cache else None, notes, check)

    def parts(files: Sequence[tuple[str, float | None]], held_out: bool) -> list[Part]:
        return [
            _labelled(Part(prepare(file, preparation, texts=held_out, cache=cache, bar=bar), file, weight), labels)
            for file, weight in files
        ]

    trained = parts(settings.train_files, isinstance(settings.validation, float))
    rows = train = Examples.whole(trained)
    validation = train.take(np.zeros(0, np.int64))
    if isinstance(settings.validation, str):
        validation = Examples.whole(parts([(settings.validation, None)], True))
    elif settings.validation is not None and (len(train) > 1 or objective != "completion"):
        held = hold_out(train.column("content"), settings.validation, seed)
        train, validation = train.take(~held), train.take(held)
    report = _report(settings, renderer, [*trained, *validation.parts], notes, loss_on)
    report.notes += labels.notes if labels is not None else ()
    return _Read(train, validation, len(rows), labels, renderer, report)


def _of_length(
    read: _Read, settings: DataSettings, max_length: int, context_length: int, *, objective: str
) -> tuple[Examples, Examples]:
    """The training and validation rows in at most `max_length` tokens, those without a target left out."""
    report = read.report
    overlong = manner_of(settings.overlong, objective)

    def fitted(examples: Examples) -> Examples:
        return fit(examples, max_length, overlong, context_length, report)

    if overlong == "error":
        fitted(read.train + read.validation)  # says both parts at once
    train = _with_targets(fitted(read.train), report, settings)
    if len(read.validation):
        return train, _with_targets(fitted(read.validation), report, settings)
    if objective == "completion" and isinstance(settings.validation, float):
        return _hold_out_the_end(train, settings.validation, report)
    return train, read.validation


def _labelled(part: Part, labels: Labels | None) -> Part:
    """The part with what its rows are labelled with. Raises TopcoatError if the file was changed in between."""
    if labels is None:
        return part
    answers = labels.values[part.file]
    if len(answers) != part.store.n_rows:
        raise TopcoatError(f"{part.file} was changed while it was read", part.file, "wait until it is written")
    return replace(part, answers=answers)


def _hold_out_the_end(windows: Examples, share: float, report: DataReport) -> tuple[Examples, Examples]:
    """The windows of one document, and the last of them to validate with. Raises TopcoatError for a single window."""
    n = len(windows)
    if n < 2:
        fix = "lower data.max_length, set data.validation: null, or name a file of validation text"
        raise TopcoatError("one text of one window cannot be divided into training and validation", "data", fix)
    held = min(n - 1, max(1, round(share * n)))
    report.notes.append(f"one document: its last {held:,} of {n:,} windows are held out")
    return windows[: n - held], windows[n - held :]


def hold_out(contents: NDArray[np.uint64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out, by a digest of each row's content: a pure function of the rows and the seed.

    Each row draws a number from its own content, and the lowest are held out: adding or reordering rows moves few
    others, and equal rows go to the same side. At least one row is held out.

    Raises:
        TopcoatError: only one row, which cannot be divided.
    """
    n = len(contents)
    if n < 2:
        fix = "set data.validation: null, or name a file of validation rows"
        raise TopcoatError("one row cannot be divided into training and validation rows", "data.validation", fix)
    drawn = _drawn(contents, seed)
    ranked = np.argsort(drawn, kind="stable")
    wanted = min(n - 1, max(1, round(share * n)))
    held: NDArray[np.bool_] = drawn <= drawn[ranked[wanted - 1]]
    if held.all():
        held = np.zeros(n, np.bool_)
        held[ranked[:wanted]] = True
    return held


def _drawn(contents: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A number for each content and seed: the digest, mixed by the finalizer of SplitMix64 (Steele et al. 2014)."""
    salt = int.from_bytes(hashlib.sha256(f"topcoat hold out {seed}".encode()).digest()[:8], "little")
    z = contents ^ np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _report(
    settings: DataSettings, renderer: Renderer, parts: Sequence[Part], notes: list[str], loss_on: str
) -> DataReport:
    """The report with what is known of the files."""
    first = parts[0].store.found
    by_file = {part.file: part.store.found for part in parts}
    report = DataReport(
        list(by_file),
        first["form"],
        renderer.chat.source,
        list(renderer.stop_tokens),
        loss_on,
        settings.overlong,
    )
    report.notes += notes
    for file, found in by_file.items():
        report.notes += found["notes"]
        if found["form"] != first["form"]:
            kind = "validation" if file == settings.validation else "training"
            report.notes.append(f"the {kind} file {file} is {found['form']}, the training file {first['form']}")
    if settings.format == "auto" and settings.text_template is None:
        report.notes.append(f"format {first['form']} was recognised from the columns {', '.join(first['columns'])}")
    lost = sum(found["lost_reasoning_tokens"] for found in by_file.values())
    if lost:
        what = f"the chat template removes {lost:,} tokens of reasoning from earlier answers"
        report.notes.append(f"{what}; one row for each answer keeps them")
    if renderer.chat.names_the_date and first["form"] != "text":
        report.notes.append("the chat template writes today's date, so another day's run differs in it")
    return report


def _with_targets(examples: Examples, report: DataReport, settings: DataSettings) -> Examples:
    """The examples that have a trained token; the others are counted.

    Raises:
        Refused: none has.
    """
    has_target = np.ones(len(examples), np.bool_) if examples.labelled else examples.targets > 0
    report.events["no_target"] += Places.of(examples.take(~has_target))
    if has_target.all() and len(examples):
        return examples
    if has_target.any():
        return examples.take(has_target)
    where = settings.train_files[0][0]
    if not len(examples):
        what = f"every example is longer than data.max_length ({report.longest:,} tokens the longest) and was dropped"
        raise Refused(what, where, "raise data.max_length, or set data.overlong: truncate or split")
    tokens = int(examples.lengths.sum(dtype=np.int64))
    what = f"0 of {tokens:,} tokens are trained: no example has an answer token left"
    raise Refused(f"{what} (first: {examples.place(0)})", where, "raise data.max_length, or data.loss_on: all")


def _check_stops(examples: Examples, renderer: Renderer) -> None:
    """Raises Refused if no example trains a token that ends a turn."""
    if examples.any_trained(renderer.stop_ids, STOPS):
        return
    names = " or ".join(renderer.stop_tokens) or renderer.tokenizer.eos_token or "eos"
    what = f"No example has a trained end-of-turn token ({names}). The model would never learn to stop."
    where = examples.parts[0].file
    fix = (
        "raise data.max_length so that answers are not cut, or set overlong: drop; data.allow: [no_stop_token] goes on"
    )
    raise Refused(what, where, fix)


def _check_context(examples: Examples) -> None:
    """Raises Refused if every token of every example is trained: the mask found no context."""
    if (examples.targets == examples.lengths - 1).all():
        what = "every token is trained, the questions as well: the chat template tells no turns apart"
        fix = "give a template that does with model.chat_template; data.loss_on: all trains every token on purpose"
        raise Refused(what, examples.parts[0].file, fix)


def _check_ids(examples: Examples, vocab_rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises TopcoatError for tokens without an embedding: on a GPU they would be a device-side assert, much later."""
    largest = examples.column("largest")
    bad = BadRows()
    for index in np.flatnonzero(largest >= vocab_rows):
        token = tokenizer.convert_ids_to_tokens(int(largest[index]))
        what = f'token id {largest[index]} ("{token}") has no embedding: the model has {vocab_rows}'
        bad.add(examples.place(int(index)), what, "use the tokenizer that belongs to the model")
    bad.raise_if_any()


def _count(report: DataReport, train: Examples, validation: Examples, rows: int, max_length: int) -> None:
    report.rows, report.max_length = rows, max_length
    report.train_examples, report.validation_examples = len(train), len(validation)
    report.tokens = int(train.lengths.sum(dtype=np.int64))
    report.target_tokens = len(train) if train.labelled else int(train.targets.sum(dtype=np.int64))
    if train.parts[:1] != validation.parts[:1] or rows > 1:  # not the windows of one document
        leaked = np.isin(validation.column("tokens"), train.column("tokens"))
        report.events["leaked"] += Places.of(validation.take(leaked))
