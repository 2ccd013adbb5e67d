"""Figures of a regression, against loops and published values."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.evaluation.numbers import number_figures, pearson, ranks, spearman

IQ = np.array([106.0, 100, 86, 101, 99, 103, 97, 113, 112, 110])
HOURS = np.array([7.0, 27, 2, 50, 28, 29, 20, 12, 6, 17])


def test_spearman_is_the_published_value_of_a_known_table():
    """IQ and hours of television: rho = -29 / 165 (Wikipedia, Spearman's rank correlation coefficient)."""
    assert spearman(IQ, HOURS) == pytest.approx(-29 / 165)


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


COLUMNS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30)


@settings(max_examples=100, deadline=None)
@given(COLUMNS)
def test_pearson_is_that_of_pythons_own_library(pairs):
    a, b = np.array(pairs, float).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert pearson(a, b) is None
        assert spearman(a, b) is None
        return
    assert pearson(a, b) == pytest.approx(statistics.correlation(a.tolist(), b.tolist()), abs=1e-9)
    ranked = statistics.correlation(ranks(a).tolist(), ranks(b).tolist())
    assert spearman(a, b) == pytest.approx(ranked, abs=1e-9)


def test_errors_and_the_share_explained_are_those_of_a_loop():
    expected, found = np.array([[1.0], [2.0], [4.0]]), np.array([[1.5], [2.0], [3.0]])
    figures = number_figures(expected, found, ["score"])
    assert figures["mse"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert figures["mae"] == pytest.approx(0.5)
    spread = sum((y - 7 / 3) ** 2 for y in (1, 2, 4))
    assert figures["r2"] == pytest.approx(1 - 1.25 / spread)
    assert "numbers" not in figures


def test_several_numbers_have_their_own_figures_and_the_mean_of_them():
    expected = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 30.0]])
    figures = number_figures(expected, expected + np.array([[1.0, 0.0]]), ["a", "b"])
    assert figures["numbers"]["a"]["mse"] == pytest.approx(1)
    assert figures["numbers"]["b"]["mse"] == 0
    assert figures["mse"] == pytest.approx(0.5)
    assert figures["pearson"] == pytest.approx(1)


def test_what_does_not_vary_has_no_correlation():
    figures = number_figures(np.array([[1.0], [2.0]]), np.array([[3.0], [3.0]]), ["score"])
    assert figures["pearson"] is None
    assert figures["spearman"] is None
    assert number_figures(np.full((3, 1), 2.0), np.full((3, 1), 2.5), ["score"])["r2"] is None


@pytest.mark.parametrize("far", [1e8, 1e-8])
def test_large_and_small_numbers_keep_their_correlation(far):
    a = np.arange(10.0) * far
    assert pearson(a, a * 3 + far) == pytest.approx(1)
