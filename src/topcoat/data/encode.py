"""Encoder: rows of a file -> arrays, inside a child process: mapped, recognised, rendered, tokenized, masked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from topcoat.data.child import BETWEEN, Answer, Progress
from topcoat.data.columns import Columns
from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.labelled import Straightened
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.render import Encoded, Example, Renderer
from topcoat.data.row_formats import to_conversations
from topcoat.data.rows import Row
from topcoat.data.sandbox import TemplateStopped
from topcoat.data.store import EMPTY_ANSWER, RESHAPED, ROW, SPECIAL_TEXT, STOPS
from topcoat.data.straight import straight_of
from topcoat.data.words import NotSeparable, Words, words_of
from topcoat.errors import TopcoatError
from topcoat.json_files import to_json

MOST_BAD = 20  # said of one request; the rest are counted


@dataclass
class _Bad:
    """What is wrong with rows: [place: what, fix] in order, and how many in all."""

    said: list[tuple[int, str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, index: int, what: str, fix: str) -> None:
        self.count += 1
        self.said = sorted([*self.said, (index, what, fix)])[:MOST_BAD]


class Encoder:
    """Encodes rows by one tokenizer, template and set of settings."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
        form: str,
        columns: Columns,
        loss_on: str,
        allow: Sequence[str],
        by_words: bool = True,
    ) -> None:
        """`by_words` False encodes every text whole, as is done where words were found not to add up."""
        self.renderer = _Told(tokenizer, chat_template, allow)
        self.renderer.words = words_of(tokenizer.backend_tokenizer) if by_words else None
        self._straight = straight_of(self.renderer, self.renderer.words, loss_on)
        self.form, self.columns, self.loss_on = form, columns, loss_on
        self._stops = np.array(sorted(self.renderer.stop_ids), np.int32)

    def encode(
        self, progress: Progress, file: str, first: tuple[int, dict[str, Any]], rows: list[Any], texts: bool
    ) -> Answer:
        """Arrays of `rows`, (line, values) each; `first` is the file's first row, which decides the format."""
        bad = _Bad()
        head, given = self._mapped(first, rows, file, bad)
        self.renderer.begin(progress, given)
        try:
            name, kept, conversations = self._conversations(head, given, bad)
            straight = self._straight.encode(conversations, progress.set) if self._straight else None
            gone = set(straight.rows) if straight else set()
            rest = [number for number in range(len(kept)) if number not in gone]
            encoded = self.renderer.encode_many(
                [conversations[number] for number in rest], [kept[number] for number in rest], self.loss_on
            )
        except NotSeparable:
            return Answer({"by_words": False})
        except TopcoatError as error:
            stopped = error.reason if isinstance(error, TemplateStopped) else None
            problem = error.problems[0]
            said = {"problem": [problem.what, problem.where, problem.fix], "stopped": stopped, "row": progress.get()}
            return Answer(said)
        finally:
            progress.set(BETWEEN)
        places = {row.place: number for number, row in reversed(list(enumerate(given)))} if encoded.bad.problems else {}
        for problem in encoded.bad.problems:
            where = problem.what.partition(": ")[0]
            bad.add(places.get(where, 0), problem.what, problem.fix)
        bad.count += max(0, encoded.bad.count - len(encoded.bad.problems))
        values = {"form": name, "columns": _names(rows), "bad": bad.said, "bad_count": bad.count}
        values["lost_reasoning_tokens"] = encoded.lost_reasoning_tokens
        if bad.count:
            return Answer(values)
        values["doubts"] = _doubts(kept, conversations)
        guarded, reshaped = ({id(row) for row in some} for some in (encoded.guarded, encoded.reshaped))
        flags = np.zeros(len(kept), np.uint32)
        for number in rest:  # a row with special tokens, a rewritten answer or an empty turn never goes straight
            row = id(kept[number])
            flags[number] = SPECIAL_TEXT * (row in guarded) | RESHAPED * (row in reshaped)
            flags[number] |= EMPTY_ANSWER * _has_empty_answer(conversations[number])
        tokens = Tokens.of(straight, rest, encoded.examples)
        asked = _asked(straight, rest, encoded.examples, conversations) if texts else [b""] * len(kept)
        lines = [row.line for row in kept]
        contents = np.array([content_digest(conversation) for conversation in conversations], np.uint64)
        arrays, sizes = arrays_of(tokens, lines, (contents, tokens.digests()), flags, self._stops, asked)
        return Answer({**values, **sizes}, arrays)

    def _mapped(
        self, first: tuple[int, dict[str, Any]], rows: list[Any], file: str, bad: _Bad
    ) -> tuple[Row | None, list[Row]]:
        """The first row and the rows, with their columns as the formats read them. None if the first has not all."""
        found = []
        for number, (line, values) in enumerate(rows):
            try:
                found.append(Row(self.columns.apply(values), file, line))
            except BadRow as error:
                found.append(Row(values, file, line))
                bad.add(number, f"{found[-1].place}: {error.what}", error.fix)
        try:
            return Row(self.columns.apply(first[1]), file, first[0]), found
        except BadRow:
            return None, found

    def _conversations(self, head: Row | None, rows: list[Row], bad: _Bad) -> tuple[str, list[Row], list[Conversation]]:
        """The name of the format, and the rows that are of it as conversations; the others are in `bad`."""
        if head is None or bad.count:
            return self.form, [], []
        try:
            name, found = to_conversations([head, *rows], self.form, {})
        except TopcoatError as error:
            if any(problem.where for problem in error.problems):  # about the file: its format is none
                raise
        else:
            return name, rows, found[1:]
        name, kept, conversations = self.form, [], []
        for number, row in enumerate(rows):
            try:
                name, found = to_conversations([head, row], self.form, {})
            except TopcoatError as error:
                mine = [problem for problem in error.problems if problem.what.startswith(f"{row.place}:")]
                for problem in mine[:1]:
                    bad.add(number, problem.what, problem.fix)
                continue
            kept.append(row)
            conversations.append(found[1])
        return name, kept, conversations


class _Told(Renderer):
    """A renderer that tells which row it renders, and remembers the tokens of words where the tokenizer allows it."""

    words: Words | None = None

    def _tokens(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        if self.words is None or not texts:
            return super()._tokens(texts)
        found = self.words.encode(texts)
        self.words.check(texts[0], found[0])
        return found

    def begin(self, progress: Progress, rows: list[Row]) -> None:
        self._progress, self._numbers = progress, {id(row): number for number, row in enumerate(rows)}

    def _draft(self, conversation: Conversation, row: Row, loss_on: str, encoded: Encoded) -> Any:
        self._progress.set(self._numbers[id(row)])
        return super()._draft(conversation, row, loss_on, encoded)


def _names(rows: list[Any]) -> list[str]:
    """Every column of the rows, those of most files few."""
    return sorted({str(name) for _, values in rows for name in values})[:200]


def _doubts(rows: Sequence[Row], conversations: Sequence[Conversation]) -> dict[str, tuple[int, int]]:
    """What is odd about rows that can be trained -> how many there are, and the line of the first."""
    found: dict[str, tuple[int, int]] = {}
    for row, conversation in zip(rows, conversations, strict=True):
        for doubt in conversation.doubts:
            count, first = found.get(doubt, (0, row.line))
            found[doubt] = (count + 1, first)
    return found


def content_digest(conversation: Conversation) -> int:
    """64 bits that follow from what a row says."""
    return _digest(to_json([conversation.messages, conversation.text, conversation.tools]))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of N rows, side by side: lengths (N,), ids (T,), which are labels (T,), and where last answers begin (N,),
    -1 where there is none."""

    lengths: NDArray[np.int64]
    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    answer_starts: NDArray[np.int64]

    @classmethod
    def of(cls, straight: Straightened | None, rest: Sequence[int], examples: Sequence[Example]) -> Tokens:
        """Of the rows that went straight, and of the rest, whose numbers are `rest`."""
        if straight and not rest:
            return cls(np.diff(straight.borders), straight.ids, straight.trained, straight.answer_starts)
        n = len(rest) + (len(straight.rows) if straight else 0)
        lengths, starts = np.zeros(n, np.int64), np.full(n, -1)
        pieces: list[tuple[NDArray[np.int32], NDArray[np.bool_]]] = [(np.zeros(0, np.int32), np.zeros(0, np.bool_))] * n
        for number, example in zip(rest, examples, strict=True):
            ids = np.array(example.input_ids, np.int32)
            pieces[number] = ids, np.array(example.labels, np.int32) != IGNORE_INDEX
            starts[number] = -1 if example.answer_start is None else example.answer_start
        if straight:
            starts[straight.rows] = straight.answer_starts
            for number, (a, b) in zip(straight.rows, pairwise(straight.borders.tolist()), strict=True):
                pieces[number] = straight.ids[a:b], straight.trained[a:b]
        lengths[:] = [len(ids) for ids, _ in pieces]
        ids = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in pieces)])
        trained = np.concatenate([np.zeros(0, np.bool_), *(trained for _, trained in pieces)])
        return cls(lengths, ids, trained, starts)

    @property
    def borders(self) -> NDArray[np.int64]:
        """First token of each row, with T behind them."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def digests(self) -> NDArray[np.uint64]:
        """64 bits of each row's ids."""
        view = memoryview(self.ids.tobytes())
        return np.array([_digest(view[4 * a : 4 * b]) for a, b in pairwise(self.borders.tolist())], np.uint64)


def _asked(
    straight: Straightened | None,
    rest: Sequence[int],
    examples: Sequence[Example],
    conversations: Sequence[Conversation],
) -> list[bytes]:
    """What a metric may ask of each row: JSON of the messages before its last answer and that answer, or nothing."""
    found = [b""] * len(conversations)
    for number, example in zip(rest, examples, strict=True):
        if example.reference is not None:
            found[number] = to_json([example.prompt_messages, example.reference])
    for number, turn in zip(straight.rows, straight.answer_turns, strict=True) if straight else ():
        messages = conversations[number].messages or []
        found[number] = to_json([messages[:turn], messages[turn]["content"]])
    return found


def arrays_of(
    tokens: Tokens,
    lines: Sequence[int] | NDArray[np.int64],
    digests: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    flags: NDArray[np.uint32],
    stops: NDArray[np.int32],
    texts: Sequence[bytes],
) -> tuple[list[bytes], dict[str, int]]:
    """Rows (ROW), ids, which of them are labels, and texts, as bytes; and how many of each.

    `digests` are those of what each row says, and of its ids.
    """
    ids, trained = tokens.ids, tokens.trained
    borders = tokens.borders
    starts, ends = borders[:-1], borders[1:]
    rows = np.zeros(len(lines), ROW)
    rows["line"], rows["length"], rows["start"] = lines, tokens.lengths, starts
    rows["answer_start"] = tokens.answer_starts
    rows["content"], rows["tokens"] = digests
    targets = np.concatenate([[0], np.cumsum(trained)])
    has_tokens = tokens.lengths > 0
    firsts = starts[has_tokens]
    rows["targets"] = targets[ends] - targets[starts]
    rows["targets"][has_tokens] -= trained[firsts]  # the first token of an example is never predicted
    rows["largest"][has_tokens] = np.maximum.reduceat(ids, firsts) if len(ids) else 0
    ending = np.concatenate([[0], np.cumsum(trained & _is_one_of(ids, stops))])
    rows["flags"] = flags | STOPS * (ending[ends] > ending[starts]).astype(np.uint32)
    rows["text_size"] = [len(text) for text in texts]
    rows["text"] = np.cumsum(rows["text_size"], dtype=np.int64) - rows["text_size"]
    joined = b"".join(texts)
    sizes = {"rows": rows.nbytes, "ids": ids.nbytes, "trained": trained.nbytes, "texts": len(joined)}
    return [rows.tobytes(), ids.tobytes(), trained.tobytes(), joined], sizes


def _is_one_of(ids: NDArray[np.int32], few: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which ids are among a few: quicker than np.isin for two or three."""
    found = np.zeros(len(ids), np.bool_)
    for one in few.tolist():
        found |= ids == one
    return found


def _digest(data: Any) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _has_empty_answer(conversation: Conversation) -> bool:
    messages = conversation.messages or []
    answers = [message for message in messages if message["role"] == "assistant"]
    return any(not answer["content"].strip() and not answer.get("tool_calls") for answer in answers)
