"""Straight: conversations -> tokens and labels without a rendering, where the template is proved to write verbatim.

For one sequence of roles such a template (`verbatim.py`) is a row of literals with the contents between them. They are
read off one rendering with sentinels; then the texts of a request are put side by side, their answers and stop tokens
stand at known places, and all rows are encoded and masked in a few array operations. The first row of each sequence of
roles and every 256th are rendered as well: a difference means that nothing of the file is done this way. Rows with
tools, calls, reasoning, empty turns or special tokens in their text go the long way (`render.py`), which decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.labelled import Group, Labeller, Shape, Straightened
from topcoat.data.mask import Answer, trained_characters
from topcoat.data.render import Renderer
from topcoat.data.template import Message
from topcoat.data.verbatim import forbidden_texts
from topcoat.data.words import NotSeparable, Words

OUTER = "\u2003\u2004"  # white space that no template writes: shows whether a content is stripped
SENTINEL = "\U0010fff4"  # a private-use character
ROLES = {"system", "user", "assistant"}


@dataclass(slots=True)
class _Text:
    """A row's contents as they are written, and whether an added token may stand in them."""

    row: int
    contents: list[str]
    is_plain: bool


class Straight:
    """Encodes rows by one renderer, a labeller with the words of its tokenizer, and what is trained."""

    def __init__(self, renderer: Renderer, labeller: Labeller, forbidden: frozenset[str], loss_on: str) -> None:
        self.labeller = labeller
        self._renderer, self._loss_on = renderer, loss_on
        self._forbidden = forbidden
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self.wary_of = tuple(dict.fromkeys((*renderer.guard.special, *labeller.words.added, *forbidden)))
        """Texts that may not stand in a content, or not without a second look."""
        self._firsts = tuple({text[0] for text in self.wary_of})
        self._heads = tuple({text[:2] for text in self.wary_of})

    def another(self) -> Straight:
        """One that does the same, for another thread; what is known of the template is shared."""
        made = Straight(self._renderer, self.labeller.another(), self._forbidden, self._loss_on)
        made._shapes = self._shapes
        return made

    def encode(self, conversations: Sequence[Conversation], at: Callable[[int], None]) -> Straightened | None:
        """The rows that go this way, None if none does. `at` is told of each row that is rendered.

        Raises:
            NotSeparable: a rendering or an encoding was not what was put together.
        """
        texts: list[_Text] = []
        shapes: list[Shape] = []
        for row, conversation in enumerate(conversations):
            shape = self._shape_of(row, conversation, at)
            text = self._text(row, conversation, shape, at) if shape else None
            if shape and text:
                texts.append(text)
                shapes.append(shape)
        if not texts:
            return None
        pieces = [piece for text, shape in zip(texts, shapes, strict=True) for piece in _pieces(shape, text.contents)]
        joined = "".join(pieces)
        data = joined.encode()
        groups = self._groups(texts, shapes, len if len(joined) == len(data) else _n_bytes)
        return self.labeller.labelled([text.row for text in texts], groups, data)

    def _groups(self, texts: list[_Text], shapes: list[Shape], length: Callable[[str], int]) -> list[Group]:
        by_shape: dict[int, list[int]] = defaultdict(list)
        for number, shape in enumerate(shapes):
            by_shape[id(shape)].append(number)
        groups = []
        for numbers in by_shape.values():
            shape, some = shapes[numbers[0]], [texts[number] for number in numbers]
            sizes = np.array([[length(content) for content in text.contents] for text in some])
            edges = {}
            for place, text in enumerate(some):
                if not text.is_plain:
                    parts = self.labeller.words.parts(_put_together(shape, text.contents))
                    edges[place] = np.cumsum([len(part.encode()) for part in parts])[:-1]
            plain = np.array([text.is_plain for text in some])
            groups.append(Group(shape, np.array(numbers), sizes, plain, edges))
        return groups

    def _shape_of(self, row: int, conversation: Conversation, at: Callable[[int], None]) -> Shape | None:
        messages = conversation.messages
        if messages is None or conversation.tools:
            return None
        for message in messages:
            if len(message) != 2:
                return None
        return self.shape(tuple([message["role"] for message in messages]), lambda: at(row))

    def shape(self, roles: tuple[str, ...], before: Callable[[], None] = lambda: None) -> Shape | None:
        """What the template writes for these roles; None where the long way is needed. `before` it is rendered."""
        if roles not in self._shapes:
            before()
            self._shapes[roles] = self._made(roles)
        return self._shapes[roles]

    def verify(self, messages: list[Message], text: str) -> None:
        """Raises NotSeparable if the template makes another text of these messages."""
        if self._rendered(messages) != text:
            raise NotSeparable(text)

    def _text(self, row: int, conversation: Conversation, shape: Shape, at: Callable[[int], None]) -> _Text | None:
        messages = conversation.messages or []
        contents = [message["content"] for message in messages]
        everything = "\n".join(contents)
        is_plain = self._is_plain(everything, contents)
        if not is_plain and (self._renderer.guard.touches(everything) or any(t in everything for t in self._forbidden)):
            return None
        for content in contents:
            if not content or content.isspace():
                return None
        contents = [
            content if strip is None else strip(content) for content, strip in zip(contents, shape.strips, strict=True)
        ]
        if shape.to_verify(1):
            at(row)
            self.verify(messages, _put_together(shape, contents))
        return _Text(row, contents, is_plain)

    def _is_plain(self, everything: str, contents: list[str]) -> bool:
        """Whether no added token and no text to be wary of can begin in the contents; mostly seen at a glance."""
        for first in self._firsts:
            if first in everything:
                break
        else:
            return True
        if any(head in everything for head in self._heads):
            return False
        ends = self._firsts  # a token may begin with the last character of a content, stripped or not
        return not any(content.endswith(ends) or content.rstrip().endswith(ends) for content in contents)

    def _rendered(self, messages: list[Message]) -> str | None:
        try:
            return self._renderer.chat.render(messages)
        except BadRow:
            return None

    def _made(self, roles: tuple[str, ...]) -> Shape | None:
        if not ROLES.issuperset(roles) or "assistant" not in roles:
            return None
        asked = [
            {"role": role, "content": f"{OUTER}{SENTINEL}{number}{SENTINEL}{OUTER}"}
            for number, role in enumerate(roles)
        ]
        text = self._rendered(asked)
        split = text.split(SENTINEL) if text is not None else []
        if split[1::2] != [str(number) for number in range(len(roles))]:
            return None
        literals = split[::2]
        kept = [(literals[n].endswith(OUTER), literals[n + 1].startswith(OUTER)) for n in range(len(roles))]
        literals = [literal.removeprefix(OUTER).removesuffix(OUTER) for literal in literals]
        if any(mark in "".join(literals) for mark in OUTER):
            return None
        stops, spaces = {}, {}
        for number in [number for number, role in enumerate(roles) if role == "assistant"]:
            match = self._renderer.stop_pattern.search(literals[number + 1])
            before = literals[number].rstrip(" ")
            if match is None or literals[number + 1][: match.start()].strip() or not before:
                return None
            stops[number] = _n_bytes(literals[number + 1][: match.start()])
            spaces[number] = len(literals[number]) - len(before)
        words = self.labeller.words
        parts = [words.parts(literal) for literal in literals]
        if any(words.may_open(tail) for *_, tail in parts):
            return None
        edges = [np.cumsum([_n_bytes(part) for part in some[:-1]]).tolist() for some in parts]
        answers = [Answer(turn, turn, turn, turn) for turn in stops]
        spans = trained_characters(answers, self._loss_on)
        sizes = [_n_bytes(literal) for literal in literals]
        return Shape(roles, literals, [STRIP[one] for one in kept], stops, spaces, edges, sizes, spans)


def _pieces(shape: Shape, contents: list[str]) -> list[str]:
    """A row's literals and contents in turns."""
    pieces = [piece for pair in zip(shape.literals, contents, strict=False) for piece in pair]
    pieces.append(shape.literals[-1])
    return pieces


def _put_together(shape: Shape, contents: list[str]) -> str:
    """The row's text."""
    return "".join(_pieces(shape, contents))


def _n_bytes(text: str) -> int:
    """Of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


STRIP: dict[tuple[bool, bool], Callable[[str], str] | None] = {
    (True, True): None,
    (False, True): str.lstrip,
    (True, False): str.rstrip,
    (False, False): str.strip,
}
"""(the white space in front is kept, that behind is) -> what the template does to a content."""


def straight_of(renderer: Renderer, words: Words | None, loss_on: str) -> Straight | None:
    """A Straight for these, or None where the template is not proved to write contents verbatim."""
    chat = renderer.chat
    if words is None or chat.marks_answers or any(mark in chat.text for mark in (*OUTER, SENTINEL)):
        return None
    forbidden = forbidden_texts(chat.text)
    if forbidden is None:
        return None
    return Straight(renderer, Labeller(renderer, words, loss_on), forbidden, loss_on)
