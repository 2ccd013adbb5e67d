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
from numpy.typing import NDArray

from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.mask import Answer, trained_characters
from topcoat.data.render import Renderer
from topcoat.data.template import Message
from topcoat.data.verbatim import forbidden_texts
from topcoat.data.words import NotSeparable, Words

OUTER = "\u2003\u2004"  # white space that no template writes: shows whether a content is stripped
SENTINEL = "\U0010fff4"  # a private-use character
ROLES = {"system", "user", "assistant"}
VERIFY_EVERY = 256

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Straightened:
    """The rows that went straight, by their numbers (N,): row n has tokens [borders[n], borders[n + 1]).

    `ids` (T,) and `trained` (T,), which of them are labels; where in each row the last answer begins (N,), and which
    message that is.
    """

    rows: list[int]
    borders: Places
    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    answer_starts: Places
    answer_turns: list[int]


@dataclass(slots=True)
class _Shape:
    """What the template writes around the contents of one sequence of roles, with places in bytes.

    Content i stands behind literals[i], stripped by strips[i]; behind an answer its stop token begins at stops[i];
    `spaces` are those at the end of the literal in front of it, which belong to its first word. `edges` are the places
    in each literal where an added token begins or ends.
    """

    literals: list[str]
    strips: list[Callable[[str], str] | None]
    stops: dict[int, int]
    spaces: dict[int, int]
    edges: list[list[int]]
    sizes: list[int]
    """Of the literals."""
    spans: list[tuple[int, int]]
    """What is trained: from the beginning of one answer to the stop token of another, as their turns."""
    met: int = 0

    @property
    def last_turn(self) -> int:
        """That of the last answer."""
        return max(self.stops)


@dataclass(slots=True)
class _Text:
    """A row's contents as they are written, and whether an added token may stand in them."""

    row: int
    contents: list[str]
    is_plain: bool


@dataclass(slots=True)
class _Places:
    """Places in the bytes of all texts: word edges, trained spans, stop tokens, and each text's last answer."""

    edges: list[Places]
    spans: list[Places]
    stops: list[Places]
    lasts: Places


class Straight:
    """Encodes rows by one renderer, `words` of its tokenizer, and what is trained."""

    def __init__(self, renderer: Renderer, words: Words, forbidden: frozenset[str], loss_on: str) -> None:
        self._renderer, self._words, self._loss_on = renderer, words, loss_on
        self._forbidden = forbidden
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}
        wary_of = (*renderer.guard.special, *words.added, *forbidden)
        self._firsts = tuple({text[0] for text in wary_of})
        self._heads = tuple({text[:2] for text in wary_of})
        self._stop_ids = np.array(sorted(renderer.stop_ids), np.int32)

    def encode(self, conversations: Sequence[Conversation], at: Callable[[int], None]) -> Straightened | None:
        """The rows that go this way, None if none does. `at` is told of each row that is rendered.

        Raises:
            NotSeparable: a rendering or an encoding was not what was put together.
        """
        texts: list[_Text] = []
        shapes: list[_Shape] = []
        for row, conversation in enumerate(conversations):
            shape = self._shape_of(row, conversation, at)
            text = self._text(row, conversation, shape, at) if shape else None
            if shape and text:
                texts.append(text)
                shapes.append(shape)
        return self._encoded(texts, shapes) if texts else None

    def _shape_of(self, row: int, conversation: Conversation, at: Callable[[int], None]) -> _Shape | None:
        messages = conversation.messages
        if messages is None or conversation.tools:
            return None
        for message in messages:
            if len(message) != 2:
                return None
        roles = tuple([message["role"] for message in messages])
        if roles not in self._shapes:
            at(row)
            self._shapes[roles] = self._shape(roles)
        return self._shapes[roles]

    def _text(self, row: int, conversation: Conversation, shape: _Shape, at: Callable[[int], None]) -> _Text | None:
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
        shape.met += 1
        if shape.met % VERIFY_EVERY == 1:
            at(row)
            text = _put_together(shape, contents)
            if self._rendered(messages) != text:
                raise NotSeparable(text)
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

    def _encoded(self, texts: list[_Text], shapes: list[_Shape]) -> Straightened:
        pieces = [piece for text, shape in zip(texts, shapes, strict=True) for piece in _pieces(shape, text.contents)]
        joined = "".join(pieces)
        data = joined.encode()
        length = len if len(joined) == len(data) else _n_bytes
        begins, places = self._places(texts, shapes, length)
        ids, ends, borders = self._words.arrays(data, np.concatenate([*places.edges, [len(data)]]), begins)
        self._check_first(texts[0], shapes[0], ids[: borders[1]], ends[: borders[1]])
        n = len(ids)
        stop_at = np.searchsorted(ends, np.concatenate(places.stops), "right")
        good_stops = np.isin(ids[np.minimum(stop_at, n - 1)], self._stop_ids) & (stop_at < n)
        if not good_stops.all():
            raise NotSeparable(_put_together(shapes[0], texts[0].contents))
        if self._loss_on == "all":
            trained = np.ones(n, np.bool_)
        else:
            first, stop = np.searchsorted(ends, np.concatenate(places.spans, axis=1), "right")
            edges = np.zeros(n + 1, np.int8)
            edges[first] += 1
            edges[stop + 1] -= 1
            trained = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
        answer_starts = np.searchsorted(ends, places.lasts, "right") - borders[:-1]
        turns = [shape.last_turn for shape in shapes]
        found = Straightened([text.row for text in texts], borders, ids, trained, answer_starts, turns)
        begin_well = self._begin_well(ids, borders)
        return found if begin_well.all() else _taken(found, np.flatnonzero(begin_well))

    def _places(self, texts: list[_Text], shapes: list[_Shape], length: Callable[[str], int]) -> tuple[Places, _Places]:
        """Where each text begins when they stand side by side, and all places in them."""
        by_shape: dict[int, list[int]] = defaultdict(list)
        for number, shape in enumerate(shapes):
            by_shape[id(shape)].append(number)
        totals = np.zeros(len(texts), np.int64)
        sized = []
        for numbers in by_shape.values():
            shape = shapes[numbers[0]]
            sizes = np.array([[length(content) for content in texts[number].contents] for number in numbers])
            totals[numbers] = sizes.sum(axis=1) + sum(shape.sizes)
            sized.append((shape, np.array(numbers), sizes))
        begins = np.cumsum(totals) - totals
        places = _Places([begins], [], [], np.zeros(len(texts), np.int64))
        for shape, chosen, sizes in sized:
            self._place(shape, sizes, begins[chosen], [texts[number] for number in chosen.tolist()], places)
            last = shape.last_turn
            places.lasts[chosen] = _starts(shape, sizes, begins[chosen])[last] - shape.spaces[last]
        return begins, places

    def _place(self, shape: _Shape, sizes: Places, begins: Places, texts: list[_Text], places: _Places) -> None:
        """Append the places in the texts (N,) of one shape, whose contents have these sizes (N, turns)."""
        starts = _starts(shape, sizes, begins)
        plain = np.array([text.is_plain for text in texts])
        for number, edges in enumerate(shape.edges):
            literal = (starts[number] if number < len(starts) else starts[-1] + sizes[:, -1] + shape.sizes[-1])[plain]
            places.edges += [literal - shape.sizes[number] + edge for edge in edges]
        for text, begin in zip(texts, begins.tolist(), strict=True):
            if not text.is_plain:
                parts = [len(part.encode()) for part in self._words.parts(_put_together(shape, text.contents))]
                places.edges.append(begin + np.cumsum(parts)[:-1])
        stops = {turn: starts[turn] + sizes[:, turn] + stop for turn, stop in shape.stops.items()}
        places.stops += stops.values()
        places.spans += [np.stack([starts[one] - shape.spaces[one], stops[other]]) for one, other in shape.spans]

    def _check_first(self, text: _Text, shape: _Shape, ids: NDArray[np.int32], ends: Places) -> None:
        """Raises NotSeparable if these are not the ids and ends, in bytes, of this text as it is encoded whole."""
        whole = _put_together(shape, text.contents)
        self._words.check_bytes(whole, ids, ends)

    def _begin_well(self, ids: NDArray[np.int32], borders: Places) -> NDArray[np.bool_]:
        """Of which texts the beginning-of-text token is as it must be without anything put in front."""
        bos, firsts, seconds = self._renderer.bos, borders[:-1], np.minimum(borders[:-1] + 1, borders[1:] - 1)
        if bos.id is None:
            return np.ones(len(firsts), np.bool_)
        is_there = ids[firsts] == bos.id
        is_twice = is_there & (ids[seconds] == bos.id) & (seconds > firsts)
        is_needed = bool(bos.is_added or bos.is_promised or bos.is_written)
        good: NDArray[np.bool_] = ~is_twice & (is_there | (not is_needed))
        return good

    def _shape(self, roles: tuple[str, ...]) -> _Shape | None:
        """What the template writes for these roles; None where the long way is needed."""
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
        parts = [self._words.parts(literal) for literal in literals]
        if any(self._words.may_open(tail) for *_, tail in parts):
            return None
        edges = [np.cumsum([_n_bytes(part) for part in some[:-1]]).tolist() for some in parts]
        answers = [Answer(turn, turn, turn, turn) for turn in stops]
        spans = trained_characters(answers, self._loss_on)
        sizes = [_n_bytes(literal) for literal in literals]
        return _Shape(literals, [STRIP[one] for one in kept], stops, spaces, edges, sizes, spans)


def _pieces(shape: _Shape, contents: list[str]) -> list[str]:
    """A row's literals and contents in turns."""
    pieces = [piece for pair in zip(shape.literals, contents, strict=False) for piece in pair]
    pieces.append(shape.literals[-1])
    return pieces


def _put_together(shape: _Shape, contents: list[str]) -> str:
    """The row's text."""
    return "".join(_pieces(shape, contents))


def _n_bytes(text: str) -> int:
    """Of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _starts(shape: _Shape, sizes: Places, begins: Places) -> Places:
    """Where contents begin (turns, N), in texts that begin at `begins` (N,); `sizes` (N, turns) are the contents'."""
    before = np.cumsum(sizes, axis=1) - sizes + np.cumsum(shape.sizes)[: sizes.shape[1]]
    return begins + before.T


def _taken(found: Straightened, chosen: Places) -> Straightened:
    """Some of the rows."""
    ranges = [np.arange(found.borders[n], found.borders[n + 1]) for n in chosen.tolist()]
    at = np.concatenate([np.zeros(0, np.int64), *ranges])
    return Straightened(
        [found.rows[n] for n in chosen.tolist()],
        np.cumsum([0, *map(len, ranges)]),
        found.ids[at],
        found.trained[at],
        found.answer_starts[chosen],
        [found.answer_turns[n] for n in chosen.tolist()],
    )


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
    return None if forbidden is None else Straight(renderer, words, forbidden, loss_on)
