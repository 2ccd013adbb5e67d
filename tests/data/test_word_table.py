"""WordTable and cuts: what a dict and a regular expression say of the same keys and texts."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.data import word_table
from topcoat.data.word_cuts import WIDE_SPACES, cut
from topcoat.data.word_memory import SHORT
from topcoat.data.word_table import PARTS, WordTable
from topcoat.data.words import PIECES

CUT = re.compile(r" (?=\S)(?<=\S )")  # a single space between two characters
SPACES = [chr(code) for code in (*WIDE_SPACES, 9, 10, 13, 28, 31)]
TEXTS = st.lists(st.sampled_from([*PIECES, *SPACES, " ", " "]) | st.text(max_size=3), max_size=40).map(
    lambda parts: "".join(parts).encode("utf-8", "replace").decode()
)


@settings(max_examples=300, deadline=None)
@given(segments=st.lists(TEXTS, max_size=5))
def test_texts_are_cut_where_the_regular_expression_cuts_them(segments):
    expected = []
    for segment in segments:
        words = CUT.split(segment)
        expected += [word.encode() for word in [words[0], *(f" {word}" for word in words[1:])] if word]
    data = "".join(segments).encode()
    edges = np.cumsum([0, *(len(segment.encode()) for segment in segments)])
    starts, is_first = cut(np.frombuffer(data + bytes(SHORT), np.uint8), len(data), edges)
    borders = [*starts.tolist(), len(data)]
    assert [data[a:b] for a, b in pairwise(borders)] == expected
    assert is_first.sum() == sum(map(bool, segments))


def test_white_space_is_what_python_calls_so():
    found = [code for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace()]
    assert found == sorted(WIDE_SPACES)


@settings(max_examples=50, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 400), max_size=120), max_size=6),
    same=st.booleans(),
    skipped=st.integers(0, 3),
)
def test_numbers_are_those_of_a_dict(batches, same, skipped):
    table, known = WordTable(), {}
    if same:  # every key looks for the same slot
        table._first_slots = lambda keys: np.zeros(len(keys), np.int64)
    for batch in batches:
        keys = np.array([[value, 7 * value, 0, 1] for value in batch], np.uint64).reshape(-1, PARTS)
        assert table.find(keys).tolist() == [known.get(value, -1) for value in batch]
        new = sorted(set(batch) - set(known))
        added = table.add(np.array([[value, 7 * value, 0, 1] for value in new], np.uint64).reshape(-1, PARTS))
        known |= dict(zip(new, added.tolist(), strict=True))
        table.take(skipped)
        assert table.find(keys).tolist() == [known[value] for value in batch]


def test_a_table_that_grows_keeps_its_numbers(monkeypatch):
    monkeypatch.setattr(word_table, "FIRST_BITS", 4)
    table, keys = WordTable(), np.arange(1, 4 * 5000 + 1, dtype=np.uint64).reshape(-1, PARTS)
    for first in range(0, 5000, 700):
        table.add(keys[first : first + 700])
        table.take(3)
    found = table.find(keys)
    assert len(set(found.tolist())) == 5000
    assert (found >= 0).all()
    assert (table.find(keys + np.uint64(1)) < 0).all()
