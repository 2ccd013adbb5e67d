"""load_data: from a file of rows to training and validation examples, each step checked and reported.

rows -> conversations -> tokens with labels -> the validation rows held out -> lengths -> checks that something is
trained, that every answer can end, and that the model has an embedding for every token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from topcoat.data.conversation import Conversation
from topcoat.data.overlong import choose_max_length, fit
from topcoat.data.render import Encoded, Example, Renderer
from topcoat.data.report import DataReport
from topcoat.data.row_formats import to_conversations
from topcoat.data.rows import BadRows, Row, read_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import Refused, TopcoatError


@dataclass
class Dataset:
    """Examples to train on and to validate with, what became of the rows, and the renderer that made them."""

    train: list[Example]
    validation: list[Example]
    report: DataReport
    renderer: Renderer
    max_length: int


def load_data(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    seed: int,
    vocab_rows: int | None = None,
    chat_template: str | None = None,
) -> Dataset:
    """Examples of a run. `vocab_rows` are the rows of the model's embedding; None leaves token ids unchecked.

    Raises:
        TopcoatError: the file or its rows are wrong, or examples are too long and data.overlong is "error".
        Refused: nothing would be trained, or the model would never learn to stop.
    """
    renderer = Renderer(tokenizer, chat_template)
    notes: list[str] = []
    rows = read_rows(settings.train, notes)
    form, conversations = to_conversations(rows, settings.format, settings.columns)
    report = DataReport(
        [settings.train], form, renderer.chat.source, list(renderer.stop_tokens), settings.loss_on, settings.overlong
    )
    train = _encode(renderer, conversations, rows, settings.loss_on, report)
    validation: list[Example] = []
    if isinstance(settings.validation, str):
        held_rows = read_rows(settings.validation, notes)
        held_form, held_out = to_conversations(held_rows, settings.format, settings.columns)
        validation = _encode(renderer, held_out, held_rows, settings.loss_on, report)
        report.files.append(settings.validation)
        if held_form != form:
            notes.append(f"the validation file is {held_form}, the training file {form}")
    elif settings.validation is not None:
        held = hold_out(conversations, settings.validation, seed)
        validation = [example for index, example in enumerate(train) if index in held]
        train = [example for index, example in enumerate(train) if index not in held]
    if vocab_rows is not None:
        _check_ids([*train, *validation], vocab_rows, tokenizer)
    everything = [*train, *validation]
    max_length = choose_max_length(settings.max_length, everything, context_length)
    longest = max(everything, key=lambda example: len(example.input_ids))
    report.longest, report.longest_row = len(longest.input_ids), longest.row.place
    if settings.overlong == "error":
        fit(everything, max_length, settings.overlong, context_length, report)  # says both parts at once
    train = _with_targets(fit(train, max_length, settings.overlong, context_length, report), report, settings)
    if validation:
        kept = fit(validation, max_length, settings.overlong, context_length, report)
        validation = _with_targets(kept, report, settings)
    _check_stops(train, renderer)
    report.notes += notes + _notes(renderer, rows, form, settings)
    _count(report, train, validation, rows, max_length)
    return Dataset(train, validation, report, renderer, max_length)


def hold_out(conversations: Sequence[Conversation], share: float, seed: int) -> set[int]:
    """Indices of the rows held out: a pure function of the rows and the seed, at least one row.

    Each row draws a number from its own content, and the lowest are held out: adding or reordering rows moves few
    others, and equal rows go to the same side.

    Raises:
        TopcoatError: only one row, which cannot be divided.
    """
    n = len(conversations)
    if n < 2:
        fix = "set data.validation: null, or name a file of validation rows"
        raise TopcoatError("one row cannot be divided into training and validation rows", "data.validation", fix)
    drawn = [_draw(conversation, seed) for conversation in conversations]
    ranked = sorted(range(n), key=lambda index: (drawn[index], index))
    wanted = min(n - 1, max(1, round(share * n)))
    border = drawn[ranked[wanted - 1]]
    held = {index for index in range(n) if drawn[index] <= border}
    return held if len(held) < n else set(ranked[:wanted])


def _draw(conversation: Conversation, seed: int) -> bytes:
    content = json.dumps([conversation.messages, conversation.text, conversation.tools], sort_keys=True)
    return hashlib.sha256(f"{seed}\n{content}".encode()).digest()


def _encode(
    renderer: Renderer, conversations: list[Conversation], rows: list[Row], loss_on: str, report: DataReport
) -> list[Example]:
    encoded: Encoded = renderer.encode_many(conversations, rows, loss_on)
    encoded.bad.raise_if_any()
    report.events["special_text"] += [row.place for row in encoded.guarded]
    report.events["reshaped"] += [row.place for row in encoded.reshaped]
    for conversation, row in zip(conversations, rows, strict=True):
        if any(m["role"] == "assistant" and not m["content"].strip() for m in conversation.messages or []):
            report.events["empty_answer"].append(row.place)
    return encoded.examples


def _with_targets(examples: list[Example], report: DataReport, settings: DataSettings) -> list[Example]:
    """The examples that have a trained token; the others are counted.

    Raises:
        Refused: none has.
    """
    kept = [example for example in examples if example.n_target_tokens]
    report.events["no_target"] += [example.row.place for example in examples if not example.n_target_tokens]
    if kept:
        return kept
    if not examples:
        what = f"every example is longer than data.max_length ({report.longest:,} tokens the longest) and was dropped"
        raise Refused(what, settings.train, "raise data.max_length, or set data.overlong: truncate or split")
    tokens = sum(len(example.input_ids) for example in examples)
    what = f"0 of {tokens:,} tokens are trained: no example has an answer token left"
    raise Refused(
        f"{what} (first: {examples[0].row.place})", settings.train, "raise data.max_length, or data.loss_on: all"
    )


def _check_stops(examples: list[Example], renderer: Renderer) -> None:
    """Raises Refused if no example trains a token that ends a turn."""
    if any(not renderer.stop_ids.isdisjoint(example.labels) for example in examples):
        return
    names = " or ".join(renderer.stop_tokens) or renderer.tokenizer.eos_token or "eos"
    what = f"No example has a trained end-of-turn token ({names}). The model would never learn to stop."
    raise Refused(
        what, examples[0].row.file, "raise data.max_length so that answers are not cut, or set overlong: drop"
    )


def _check_ids(examples: list[Example], vocab_rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises TopcoatError for tokens without an embedding: on a GPU they would be a device-side assert, much later."""
    bad = BadRows()
    for example in examples:
        largest = max(example.input_ids, default=0)
        if largest >= vocab_rows:
            token = tokenizer.convert_ids_to_tokens(largest)
            what = f'token id {largest} ("{token}") has no embedding: the model has {vocab_rows}'
            bad.add(example.row.place, what, "use the tokenizer that belongs to the model")
    bad.raise_if_any()


def _notes(renderer: Renderer, rows: list[Row], form: str, settings: DataSettings) -> list[str]:
    notes = []
    if settings.format == "auto":
        notes.append(f"format {form} was recognised from the columns {', '.join(map(str, rows[0].values))}")
    if renderer.chat.names_the_date and form != "text":
        notes.append("the chat template writes today's date, so another day's run differs in it")
    return notes


def _count(
    report: DataReport, train: list[Example], validation: list[Example], rows: list[Row], max_length: int
) -> None:
    report.rows, report.max_length = len(rows), max_length
    report.train_examples, report.validation_examples = len(train), len(validation)
    report.tokens = sum(len(example.input_ids) for example in train)
    report.target_tokens = sum(example.n_target_tokens for example in train)
    seen = {tuple(example.input_ids) for example in train}
    report.events["leaked"] += [e.row.place for e in validation if tuple(e.input_ids) in seen]
