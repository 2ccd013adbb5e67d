"""Figures of a classification, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.evaluation.classes import class_figures, confusion

NAMES = ("cat", "dog", "eel")


def test_figures_of_a_small_example_are_those_of_pen_and_paper():
    expected, found = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    figures = class_figures(expected, found, NAMES)
    assert figures["rows"] == 6
    assert figures["accuracy"] == pytest.approx(3 / 6)
    assert figures["labels"]["cat"] == {"rows": 3, "precision": 2 / 4, "recall": 2 / 3, "f1": pytest.approx(4 / 7)}
    assert figures["labels"]["eel"] == {"rows": 1, "precision": 0, "recall": 0, "f1": 0}
    assert figures["macro_f1"] == pytest.approx((4 / 7 + 2 / 4 + 0) / 3)
    pairs = [(pair["label"], pair["predicted"], pair["rows"]) for pair in figures["confusion"]]
    assert pairs == [("cat", "dog", 1), ("dog", "cat", 1), ("eel", "cat", 1)]


def test_a_label_that_no_row_has_and_none_was_given_is_left_out_of_the_mean():
    figures = class_figures(np.array([0, 1]), np.array([0, 1]), NAMES)
    assert (figures["accuracy"], figures["macro_f1"]) == (1, 1)


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_the_figures_are_those_of_a_loop_over_the_rows(rows):
    expected, found = np.array(rows).T
    figures = class_figures(expected, found, NAMES)
    counts = confusion(expected, found, 3)
    f1 = []
    for label, name in enumerate(NAMES):
        hits = sum(e == f == label for e, f in rows)
        has, given_ = sum(e == label for e, _ in rows), sum(f == label for _, f in rows)
        assert counts[label].sum() == has
        assert figures["labels"][name]["recall"] == pytest.approx(hits / has if has else 0)
        assert figures["labels"][name]["precision"] == pytest.approx(hits / given_ if given_ else 0)
        if has or given_:
            f1.append(2 * hits / (has + given_))
    assert figures["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert figures["accuracy"] == pytest.approx(sum(e == f for e, f in rows) / len(rows))
    assert sum(pair["rows"] for pair in figures["confusion"]) == sum(e != f for e, f in rows)
