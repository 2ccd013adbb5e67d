"""Layouts: which texts of a row become which turns, found out once for all rows that are alike but for their texts.

A row of the layout is made with a marker in place of each text and read by the format, as every row is. Where each turn
is one marker and nothing more, the format hands that text on as it stands: rows of the layout are conversations of
those roles, whatever else they say, as long as no text is blank. What the format looks into comes out otherwise, and
such rows are read one by one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from topcoat.data.columns import Columns
from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.formats import unpaired
from topcoat.data.labelled import Places, Shape
from topcoat.data.line_arrays import NUMBER, TEXT
from topcoat.data.row_formats import MEDIA, READ, to_conversations
from topcoat.data.rows import Row
from topcoat.data.straight import Straight
from topcoat.errors import TopcoatError
from topcoat.json_files import loads, to_json

MOST = 4096  # different layouts of one file: more means that rows are not alike
LOOKED_INTO = frozenset({*READ, *MEDIA, *unpaired.LABELS, "functions"})
"""Columns whose numbers may mean something to a format."""


_AT = "\U0010fff5"  # a private-use character
_MARK = f"{_AT}[0-9]+{_AT}"


class TooMany(Exception):
    """A file whose rows are not alike."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of one layout: their columns, the shape of their conversation, and which of their texts the turns are."""

    columns: frozenset[str]
    shape: Shape
    turns: Places
    said: list[bytes]
    """What JSON has around the turns in the text that the digest of a row is of, and ..."""
    asked: list[bytes]
    """... in what a metric may ask of it: the messages before the last answer, and that answer."""


class Layouts:
    """The layouts of one file, whose first row and settings decide the format."""

    def __init__(self, straight: Straight, head: Row, form: str, columns: Columns) -> None:
        self._straight, self._head, self._form, self._columns = straight, head, form, columns
        self._known: dict[bytes, Layout | None] = {}
        self.form = form
        """Its name, once a layout is known."""

    def of(self, layout: bytes) -> Layout | None:
        """What rows of this layout are; None for those that must be read one by one. Raises TooMany."""
        if layout not in self._known:
            if len(self._known) > MOST:
                raise TooMany
            self._known[layout] = self._made(layout)
        return self._known[layout]

    def _made(self, layout: bytes) -> Layout | None:
        parts = layout.split(TEXT)
        marks = [f"{_AT}{number}{_AT}" for number in range(len(parts) - 1)]
        quoted = [*map(json.dumps, marks), ""]
        text = "".join(f"{part.decode()}{mark}" for part, mark in zip(parts, quoted, strict=True))
        try:
            values = loads(text.replace(NUMBER.decode(), "7"))
            has_number = re.findall(rb'"([^"]*)":' + NUMBER, layout)
            if any(name.decode() in LOOKED_INTO for name in has_number):
                return None
            row = Row(self._columns.apply(values), self._head.file, self._head.line)
            form, (_, conversation) = to_conversations([self._head, row], self._form, {})
        except (json.JSONDecodeError, BadRow, TopcoatError):
            return None
        turns = _turns(conversation, marks)
        shape = (
            self._straight.shape(tuple(message["role"] for message in conversation.messages or ())) if turns else None
        )
        if shape is None:
            return None
        self.form = form
        messages, last = conversation.messages or [], shape.last_turn
        said = to_json([messages, conversation.text, conversation.tools])
        asked = to_json([messages[:last], messages[last]["content"]])
        around = [re.split(_MARK, text.decode()) for text in (said, asked)]
        literals = ([piece.encode() for piece in pieces] for pieces in around)
        return Layout(frozenset(map(str, values)), shape, np.array(turns, np.int64), *literals)


def _turns(conversation: Conversation, marks: list[str]) -> list[int]:
    """Which mark each message says and nothing more; empty where one says something else, or the row is odd."""
    messages = conversation.messages
    if messages is None or conversation.tools or conversation.doubts:
        return []
    numbers = {mark: number for number, mark in enumerate(marks)}
    if any(len(message) != 2 or message["content"] not in numbers for message in messages):
        return []
    return [numbers[message["content"]] for message in messages]
