"""Labelled: texts side by side -> tokens, and which of them are labels, where it is known what the template wrote.

The text of a row is a literal, a content, a literal, ... and a last literal (`Shape`). Texts of one shape are a Group:
their contents' sizes say where all answers, stop tokens and added tokens stand, so that a batch of them is encoded and
masked in a few array operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from topcoat.data.render import Renderer
from topcoat.data.words import NotSeparable, Words

Places = NDArray[np.int64]
VERIFY_EVERY = 256


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
class Shape:
    """What the template writes around the contents of one sequence of roles, with places in bytes.

    Content i stands behind literals[i], stripped by strips[i]; behind an answer its stop token begins at stops[i];
    `spaces` are those at the end of the literal in front of it, which belong to its first word. `edges` are the places
    in each literal where an added token begins or ends.
    """

    roles: tuple[str, ...]
    literals: list[str]
    strips: list[Callable[[str], str] | None]
    stops: dict[int, int]
    spaces: dict[int, int]
    edges: list[list[int]]
    sizes: list[int]
    """Of the literals."""
    spans: list[tuple[int, int]]
    """What is trained: from the beginning of one answer to the stop token of another, as their turns."""
    _met: int = field(default=0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    @property
    def last_turn(self) -> int:
        """That of the last answer."""
        return max(self.stops)

    def to_verify(self, count: int) -> range:
        """Which of the next `count` texts of the shape are rendered as well: its first, then one in VERIFY_EVERY."""
        with self._lock:  # threads share the shapes of a file
            before = self._met
            self._met += count
        return range(-before % VERIFY_EVERY, count, VERIFY_EVERY)


@dataclass(frozen=True, slots=True)
class Group:
    """Texts of one shape: their numbers (n,) among all, and the sizes of their contents in bytes (n, turns).

    `plain` (n,) are those in whose contents no added token stands; for the others `edges` has each text's own, from its
    beginning, by its place in the group.
    """

    shape: Shape
    numbers: Places
    sizes: Places
    plain: NDArray[np.bool_]
    edges: dict[int, Places] = field(default_factory=dict)


@dataclass(slots=True)
class _Places:
    """Places in the bytes of all texts: word edges, trained spans, stop tokens, and each text's last answer."""

    edges: list[Places]
    spans: list[Places]
    stops: list[Places]
    lasts: Places


class Labeller:
    """Encodes texts of known shapes by one renderer, `words` of its tokenizer, and what is trained."""

    def __init__(self, renderer: Renderer, words: Words, loss_on: str) -> None:
        self.words = words
        self._renderer, self._loss_on = renderer, loss_on
        self._stop_ids = np.array(sorted(renderer.stop_ids), np.int32)

    def another(self) -> Labeller:
        """One that does the same, for another thread."""
        return Labeller(self._renderer, self.words.another(), self._loss_on)

    def labelled(self, rows: list[int], groups: list[Group], data: bytes) -> Straightened:
        """Tokens and labels of the texts in `data`, each in one of the groups; `rows` says which row each is.

        A row whose beginning-of-text token is not as it must be is left out.

        Raises:
            NotSeparable: the first text's tokens are others, or an answer does not end in a stop token.
        """
        begins, places = _placed(groups, len(rows))
        ids, ends, borders = self.words.arrays(data, np.concatenate([*places.edges, [len(data)]]), begins)
        first = data[: begins[1]] if len(begins) > 1 else data
        self.words.check_bytes(first.decode(), ids[: borders[1]], ends[: borders[1]])
        n = len(ids)
        stop_at = np.searchsorted(ends, np.concatenate(places.stops), "right")
        good_stops = np.isin(ids[np.minimum(stop_at, n - 1)], self._stop_ids) & (stop_at < n)
        if not good_stops.all():
            raise NotSeparable(first.decode())
        if self._loss_on == "all":
            trained = np.ones(n, np.bool_)
        else:
            start, stop = np.searchsorted(ends, np.concatenate(places.spans, axis=1), "right")
            edges = np.zeros(n + 1, np.int8)
            edges[start] += 1
            edges[stop + 1] -= 1
            trained = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
        answer_starts = np.searchsorted(ends, places.lasts, "right") - borders[:-1]
        turns = np.zeros(len(rows), np.int64)
        for group in groups:
            turns[group.numbers] = group.shape.last_turn
        found = Straightened(rows, borders, ids, trained, answer_starts, turns.tolist())
        begin_well = self._begin_well(ids, borders)
        return found if begin_well.all() else _taken(found, np.flatnonzero(begin_well))

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


def _placed(groups: list[Group], n: int) -> tuple[Places, _Places]:
    """Where each of n texts begins when they stand side by side, and all places in them."""
    totals = np.zeros(n, np.int64)
    for group in groups:
        totals[group.numbers] = group.sizes.sum(axis=1) + sum(group.shape.sizes)
    begins = np.cumsum(totals) - totals
    places = _Places([begins], [], [], np.zeros(n, np.int64))
    for group in groups:
        starts = _place(group, begins[group.numbers], places)
        last = group.shape.last_turn
        places.lasts[group.numbers] = starts[last] - group.shape.spaces[last]
    return begins, places


def _place(group: Group, begins: Places, places: _Places) -> Places:
    """Append the places in the texts of a group, which begin at `begins` (n,); where contents begin (turns, n)."""
    shape, sizes = group.shape, group.sizes
    before = np.cumsum(sizes, axis=1) - sizes + np.cumsum(shape.sizes)[: sizes.shape[1]]
    starts: Places = begins + before.T
    for number, edges in enumerate(shape.edges):
        behind = starts[number] if number < len(starts) else starts[-1] + sizes[:, -1] + shape.sizes[-1]
        places.edges += [behind[group.plain] - shape.sizes[number] + edge for edge in edges]
    places.edges += [begins[place] + edges for place, edges in group.edges.items()]
    stops = {turn: starts[turn] + sizes[:, turn] + stop for turn, stop in shape.stops.items()}
    places.stops += stops.values()
    places.spans += [np.stack([starts[one] - shape.spaces[one], stops[other]]) for one, other in shape.spans]
    return starts


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
