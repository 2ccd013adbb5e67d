"""Examples longer than max_length: refused, left out, cut, or split. Counted and reported in every case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from topcoat.data.examples import Examples, Places
from topcoat.data.render import Example
from topcoat.data.report import DataReport
from topcoat.errors import TopcoatError
from topcoat.units import show_percent

WINDOW = 2048
"""Most tokens of a window of plain text where data.max_length is auto."""


def choose_max_length(setting: int | str, longest: int, context_length: int, most: int | None = None) -> int:
    """The limit in effect: the setting, or for "auto" the longest example, capped at the model's context and `most`.

    Raises:
        TopcoatError: the setting is beyond the model's context.
    """
    if isinstance(setting, int):
        if setting > context_length:
            what = f"data.max_length is {setting:,}, but the model's context is {context_length:,} tokens"
            raise TopcoatError(what, "data.max_length", f"set it to {context_length} or less, or to auto")
        return setting
    return min(longest, context_length, most or context_length)


def manner_of(overlong: str, objective: str) -> str:
    """The setting, or "windows" where plain text is split: pieces of which each begins with the last token of the one
    before, so that every token but a document's first is predicted, once."""
    return "windows" if objective == "completion" and overlong == "split" else overlong


def fit(examples: Examples, max_length: int, overlong: str, context_length: int, report: DataReport) -> Examples:
    """The examples, none longer than `max_length`; what was done to them is written into `report`.

    `overlong` is what `manner_of` says.

    Raises:
        TopcoatError: some are longer and `overlong` is "error".
    """
    is_long = examples.lengths > max_length
    if not is_long.any():
        return examples
    long = examples.take(is_long)
    if overlong == "error":
        _refuse(examples, long, max_length, context_length)
    report.events[EVENTS[overlong]] += Places.of(long)
    left = shortened(long, max_length, overlong)
    report.lost_target_tokens += int(long.targets.sum(dtype=np.int64) - left.targets.sum(dtype=np.int64))
    return shortened(examples, max_length, overlong)


EVENTS = {"drop": "dropped_overlong", "truncate": "truncated", "split": "split", "windows": "windows"}
"""What becomes of an example that is too long -> the event of the report."""


def shortened(examples: Examples, max_length: int, overlong: str) -> Examples:
    """The examples with those over `max_length` left out, cut at their end, or cut into pieces, by `overlong`."""
    owners, before, lengths = pieces_of(examples.lengths, max_length, overlong)
    found = examples.take(owners)
    found.first = found.first + before
    found.lengths = lengths
    return found


def pieces_of(
    lengths: NDArray[np.int32], max_length: int, overlong: str
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """What is left of examples of `lengths` (N,): of each piece (M,) its example, the tokens before it, its length."""
    if overlong in ("drop", "error"):
        (kept,) = np.nonzero((lengths <= max_length) | (overlong == "error"))
        return kept, np.zeros(len(kept), np.int32), lengths[kept].astype(np.int32)
    stride = max_length - 1 if overlong == "windows" else max_length
    pieces = np.ones(len(lengths), np.int64)
    if overlong in ("split", "windows"):
        pieces = np.maximum(-(-(lengths - (max_length - stride)) // stride), 1)
    owners = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the piece in its example
    before = (number * stride).astype(np.int32)
    return owners, before, np.minimum(lengths[owners] - before, max_length).astype(np.int32)


def shorten(example: Example, max_length: int, overlong: str) -> list[Example]:
    """What is left of an example that is longer than `max_length`: nothing, its beginning, or several pieces."""
    if overlong == "drop":
        return []
    stride = max_length - 1 if overlong == "windows" else max_length
    stop = max_length if overlong == "truncate" else len(example.input_ids) - (max_length - stride)
    found = []
    for start in range(0, stop, stride):
        ids, labels = example.input_ids[start : start + max_length], example.labels[start : start + max_length]
        # an answer that was cut is no reference for a metric any more
        found.append(replace(example, input_ids=ids, labels=labels, reference=None, answer_start=None))
    return found


def _refuse(examples: Examples, long: Examples, max_length: int, context_length: int) -> None:
    at = int(long.lengths.argmax())
    lost = int(long.targets.sum(dtype=np.int64) - shortened(long, max_length, "truncate").targets.sum(dtype=np.int64))
    share = lost / max(1, int(examples.targets.sum(dtype=np.int64)))
    need = int(long.lengths[at])
    verb = "examples exceeds" if len(long) == 1 else "examples exceed"
    what = (
        f"{len(long):,} of {len(examples):,} {verb} {max_length:,} tokens and would lose {show_percent(share)} of all"
        f" answer tokens (first: {long.place(0)}, {long.lengths[0]:,} tokens; longest:"
        f" {long.place(at)}, {need:,})"
    )
    raise TopcoatError(what, "data.max_length", way_out(need, context_length, labelled=examples.labelled))


def way_out(longest: int, context_length: int, *, labelled: bool, counted: bool = True) -> str:
    """What to set where examples are longer than data.max_length: a limit the model can have, or what to do with them.

    A text with one label has no parts to `split` into. Where not every example was `counted`, the longest is not known.
    """
    ways = "drop or truncate" if labelled else "drop, truncate or split"
    if longest > context_length:
        return f"set data.overlong: {ways} (the model's context is {context_length:,} tokens)"
    return f"set data.max_length: {longest if counted else 'auto'}, or set data.overlong: {ways}"
