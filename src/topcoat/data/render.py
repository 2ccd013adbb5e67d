"""Renderer, the one function from messages to tokens: training, evaluation and chat all render here.

text = chat template (messages); ids = encode(text) with no special token added by the encoding. The model's BOS is put
in front, once, only where the tokenizer adds it to plain text by itself and the template did not write it. Labels are
the ids of the trained positions (`mask.py`) and IGNORE_INDEX elsewhere; labels[i] is the token at i, not shifted.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from topcoat.data.bos import Bos
from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.mask import (
    IGNORE_INDEX,
    Answer,
    Skeleton,
    locate_answers,
    reasons_or_calls,
    trained_characters,
)
from topcoat.data.proof import check_answers, check_order, check_presence
from topcoat.data.rows import BadRows, Row
from topcoat.data.special import Guard, shifted
from topcoat.data.template import ARGUMENT, CALL, Message, Template, any_of
from topcoat.errors import Refused

NOWHERE = Row({}, "(no file)", 0)
SENTINEL = "\U0010fff2"  # a private-use character: stands for an answer that is not there yet
THINKING = {"<think>", "</think>"}  # tokens that an answer may write by itself
CHUNK = 1024  # rows encoded at once: the tokenizer uses every core on them


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: T tokens, and what a metric needs to ask the model for the last answer.

    The prompt of that answer is input_ids[:answer_start]; None where there is none (plain text, or it was cut off).
    """

    input_ids: list[int]
    labels: list[int]
    row: Row
    prompt_messages: list[Message] | None = None
    reference: str | None = None
    answer_start: int | None = None

    @property
    def n_target_tokens(self) -> int:
        """Labels that count: the first token of an example is never predicted."""
        return len(self.labels) - 1 - self.labels[1:].count(IGNORE_INDEX) if self.labels else 0


@dataclass
class Encoded:
    """Examples in the order of the rows, the rows that failed, and the rows worth a word in the report."""

    examples: list[Example] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)
    guarded: list[Row] = field(default_factory=list)
    """Rows whose text holds special tokens, which were kept as text."""
    reshaped: list[Row] = field(default_factory=list)
    """Rows of which the template leaves out or rewrites part of an answer."""
    lost_reasoning_tokens: int = 0
    """Tokens of the data's reasoning that the template leaves out, as it does of earlier answers."""


@dataclass(slots=True)
class _Draft:
    """A rendered row, not yet encoded. `free` is the placeholder character where special tokens were escaped."""

    row: Row
    text: str
    conversation: Conversation
    answers: list[Answer]
    free: str = ""
    append_eos: bool = False
    lost_reasoning: list[str] = field(default_factory=list)


DOCUMENT = "document"
"""In place of what is trained: no token is, and the last one of a plain text is read by a head of its own. The text is
encoded as the tokenizer encodes it alone, with nothing behind it."""


class Renderer:
    """Renders and encodes with one tokenizer and one chat template (the tokenizer's own, or the text given)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, allow: Sequence[str] = ()
    ) -> None:
        if not tokenizer.is_fast:
            what = f"{type(tokenizer).__name__} cannot say which characters a token came from"
            raise Refused(what, "tokenizer", "use a model directory that has a tokenizer.json")
        self.tokenizer = tokenizer
        self.chat = Template(tokenizer, chat_template)
        self.template = self.chat.text
        self._skeletons: dict[tuple[tuple[str, ...], str], Skeleton] = {}
        self._added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        self.bos = Bos(tokenizer, self.chat)
        self.allow = frozenset(allow)
        """What rows may do although it is refused else; see DataSettings.allow."""
        self.stop_tokens = self._find_stop_tokens()
        """Texts of the tokens that end an assistant turn in this template; empty if it ends turns with none."""
        self.stop_pattern = any_of(self.stop_tokens)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.stop_ids: set[int] = {self._added[token] for token in self.stop_tokens}
        """Ids that end an answer: the template's, and the tokenizer's eos."""
        if self.eos_id is not None:
            self.stop_ids.add(self.eos_id)
        self.guard = Guard(tokenizer, self._protected())
        self._special_ids = set(self.guard.special.values())

    def encode(self, conversation: Conversation, loss_on: str = "assistant", row: Row = NOWHERE) -> Example:
        """One conversation as an Example.

        Raises:
            TopcoatError: the template refuses it, or an answer's tokens cannot be told from the rest.
        """
        encoded = self.encode_many([conversation], [row], loss_on)
        encoded.bad.raise_if_any()
        return encoded.examples[0]

    def encode_many(self, conversations: Sequence[Conversation], rows: Sequence[Row], loss_on: str) -> Encoded:
        """All conversations as Examples, many at a time; what cannot be rendered is gathered in `.bad`."""
        encoded = Encoded()
        for first in range(0, len(rows), CHUNK):
            drafts = []
            for conversation, row in zip(
                conversations[first : first + CHUNK], rows[first : first + CHUNK], strict=True
            ):
                try:
                    drafts.append(self._draft(conversation, row, loss_on, encoded))
                except BadRow as error:
                    encoded.bad.add(row.place, self.guard.restore(error.what), error.fix)
            plain = [draft for draft in drafts if not draft.free]
            tokens = iter(self._tokens([draft.text for draft in plain]))
            lost = self._tokens([thought for draft in drafts for thought in draft.lost_reasoning])
            encoded.lost_reasoning_tokens += sum(len(ids) for ids, _ in lost)
            for draft in drafts:
                try:
                    encoded.examples.append(self._finish(draft, loss_on, *self._of(draft, tokens)))
                except BadRow as error:
                    encoded.bad.add(draft.row.place, error.what, error.fix)
        return encoded

    def prompt_ids(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of the conversation up to the assistant's next answer: what stood in front of it in training.

        That is the template's generation prompt, and what the template writes before a plain answer by itself (the
        empty think block of Qwen3). It is cut out of a rendering with an answer, since a prompt that is encoded alone
        may end in other tokens: a space at its end belongs to the answer's first word.

        Raises:
            BadRow: the template refuses the messages.
        """
        held, tools, free = self._escaped(list(messages), tools)
        upto, found, _ = self.chat.render([*held, {"role": "assistant", "content": SENTINEL}], tools).rpartition(
            SENTINEL
        )
        if not found:
            raise BadRow("the chat template leaves out the assistant's turn")
        text = upto + "The"
        ids, ends, shifts = self.guard.encode(text, free) if free else (*self._tokens([text])[0], [])
        return self.bos.put(ids[: bisect_right(ends, shifted(_with_spaces(upto, len(upto)), shifts))], rendered=True)

    def _draft(self, conversation: Conversation, row: Row, loss_on: str, encoded: Encoded) -> _Draft:
        if conversation.messages is None:
            return _Draft(row, conversation.text or "", conversation, [], append_eos=loss_on != DOCUMENT)
        messages, tools, free = self._escaped(conversation.messages, conversation.tools)
        if free:
            encoded.guarded.append(row)
        text, marked = self.chat.render_marked(messages, tools)
        answers = locate_answers(
            self.chat, lambda: self._skeleton(messages, tools), text, marked, messages, tools, self.stop_pattern
        )
        if any(reasons_or_calls(message) or message["role"] == "tool" for message in messages):
            check_presence(text, messages, answers, self.allow)
        else:
            check_order(self._skeleton(messages, tools), messages, self.allow)
        changed, lost = check_answers(text, messages, answers, self.allow)
        if changed:
            encoded.reshaped.append(row)
        draft = _Draft(row, text, conversation, answers, free, lost_reasoning=lost)
        if answers[-1].stop == answers[-1].end:
            self._end_with_eos(draft, len(messages))
        for answer in answers[:-1]:
            if answer.stop == answer.end and loss_on == "assistant" and not marked:
                what = f"message {answer.turn + 1} (assistant) does not end in a stop token"
                fix = "set data.loss_on: last_turn, or give a template that ends every turn with model.chat_template"
                raise BadRow(f"{what}: the chat template writes none inside a conversation", fix)
        return draft

    def _escaped(
        self, messages: list[Message], tools: list[dict[str, Any]] | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None, str]:
        """The row with its special tokens' texts escaped, and the placeholder's character, "" if it has none."""
        if not self.guard.touches([*messages, *(tools or [])]):
            return messages, tools, ""
        escaped, free = self.guard.escape([*messages, *(tools or [])])
        return escaped[: len(messages)], escaped[len(messages) :] or None, free

    def _end_with_eos(self, draft: _Draft, n_messages: int) -> None:
        """The template ends its last turn with no stop token: cut behind the answer, and put the eos token there."""
        last = draft.answers[-1]
        if last.turn != n_messages - 1 or self.eos_id is None:
            what = f"message {last.turn + 1} (assistant) does not end in a stop token: the model would never stop"
            raise BadRow(what, "give a template that ends every turn with model.chat_template")
        draft.text = draft.text[: last.end]
        draft.append_eos = True

    def _of(self, draft: _Draft, tokens: Any) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        if draft.free:
            return self.guard.encode(draft.text, draft.free)
        return (*next(tokens), [])

    def _finish(
        self, draft: _Draft, loss_on: str, ids: list[int], ends: list[int], shifts: list[tuple[int, int]]
    ) -> Example:
        """Labels by position. A token belongs to the characters up to its end: offsets' starts leave spaces out."""
        if loss_on == DOCUMENT:
            return _document(self.bos.put(ids, rendered=False), draft.row)
        labels = [IGNORE_INDEX] * len(ids)
        answer_start, last = None, None
        if draft.answers:
            last = draft.answers[-1]
            for answer in draft.answers:
                self._check_stop(answer, ids, ends, shifts)
            for start, stop in trained_characters(draft.answers, loss_on):
                # behind the last character comes the stop token, which is always a token of its own
                behind = bisect_right(ends, shifted(stop, shifts)) + 1
                first = self._first(ids, ends, shifted(_with_spaces(draft.text, start), shifts))
                labels[first:behind] = ids[first:behind]
            answer_start = self._first(ids, ends, shifted(_with_spaces(draft.text, last.start), shifts))
        if not draft.answers or loss_on == "all":
            labels = list(ids)
        if draft.append_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids, labels = [*ids, self.eos_id], [*labels, self.eos_id]
        with_bos = self.bos.put(ids, rendered=draft.conversation.messages is not None)
        if len(with_bos) > len(ids):
            labels = [with_bos[0] if loss_on == "all" or not draft.answers else IGNORE_INDEX, *labels]
            answer_start = None if answer_start is None else answer_start + 1
        if last is None or draft.conversation.messages is None:
            return Example(with_bos, labels, draft.row)
        messages = draft.conversation.messages
        return Example(with_bos, labels, draft.row, messages[: last.turn], messages[last.turn]["content"], answer_start)

    def _first(self, ids: list[int], ends: list[int], start: int) -> int:
        """The first token of the text at `start`: the first that ends behind it.

        A special token that begins before `start` is the template's, though it may end behind: Phi-3's <|assistant|>
        takes the white space that follows with it, and an answer's own with that.
        """
        at = bisect_right(ends, start)
        swallowed = 0 < at < len(ids) and ends[at - 1] < start and ids[at] in self._special_ids
        return at + 1 if swallowed else at

    def _check_stop(self, answer: Answer, ids: list[int], ends: list[int], shifts: list[tuple[int, int]]) -> None:
        if answer.stop == answer.end:
            return
        at = bisect_right(ends, shifted(answer.stop, shifts))
        if at >= len(ids) or ids[at] not in self.stop_ids:
            raise BadRow(
                f"the stop token of message {answer.turn + 1} (assistant) is not one token in the encoded text"
            )

    def _tokens(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """Ids and the end of each token, in characters, for each text. Nothing is added in front or behind."""
        if not texts:
            return []
        batch = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in batch.encodings or []]

    def _skeleton(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> Skeleton:
        roles = tuple(message["role"] for message in messages)
        key = (roles, json.dumps(tools) if tools else "")
        if key not in self._skeletons:
            if len(self._skeletons) > 4096:  # every row with tools of its own: nothing to reuse
                self._skeletons.clear()
            self._skeletons[key] = Skeleton(self.chat, roles, tools)
        return self._skeletons[key]

    def _find_stop_tokens(self) -> tuple[str, ...]:
        """The first added token behind each answer of a two-answer conversation, and the one that ends a call."""
        found = self._stops_of_answers()
        try:
            behind = self.chat.render(CALL).rpartition(ARGUMENT)
        except BadRow:
            return found
        specials = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        ends = [match[0] for match in self.chat.added.finditer(behind[2]) if match[0] in specials]
        return tuple(dict.fromkeys([*found, *ends[-1:]])) if behind[1] else found

    def _stops_of_answers(self) -> tuple[str, ...]:
        added = self.chat.added
        for roles in (("user", "assistant") * 2, ("user", "assistant")):
            try:
                skeleton = Skeleton(self.chat, roles, None)
            except BadRow:
                continue
            behind = dict(zip(skeleton.order, skeleton.between[1:], strict=True))
            last = added.search(behind.get(len(roles) - 1, ""))
            if last is None:
                return ()
            inner = added.search(behind.get(1, ""))
            return tuple(dict.fromkeys(match[0] for match in (inner, last) if match))
        return ()

    def _protected(self) -> dict[str, int]:
        """Tokens that are special, or that the template writes to shape a turn, by their text."""
        decoder = self.tokenizer.added_tokens_decoder
        names = {token.content for token in decoder.values() if token.special} | set(self.stop_tokens)
        for roles in (("system", "user", "assistant"), ("user", "assistant"), ("user",)):
            try:
                shape = self.chat.render([{"role": role, "content": ""} for role in roles])
            except BadRow:
                continue
            names |= set(self.chat.added.findall(shape)) - THINKING
        return {name: self._added[name] for name in names}


def _document(ids: list[int], row: Row) -> Example:
    """A text of which the last token is read. Raises BadRow for one that the tokenizer makes nothing of."""
    if not ids:
        raise BadRow("the tokenizer makes no token of the text", "take the row out")
    return Example(ids, [IGNORE_INDEX] * (len(ids) - 1) + ids[-1:], row)


def _with_spaces(text: str, start: int) -> int:
    """`start`, moved in front of the spaces before it: tokenizers write a word together with its space."""
    while start > 0 and text[start - 1] == " ":
        start -= 1
    return start
