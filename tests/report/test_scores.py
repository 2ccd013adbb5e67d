"""The Wilson interval against its defining equation, and the sentence that reads it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.report.scores import Z95, ExactMatch, exact_match, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_are_the_shares_whose_own_spread_just_reaches_the_observed_one(drawn):
    """Wilson's definition: |p - share| = z sqrt(p (1 - p) / n) at both ends."""
    successes, n = drawn
    share = successes / n
    low, high = wilson(successes, n)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        assert abs(end - share) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_known_values():
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3."""
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_no_rows_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_verdict_says_when_the_rows_do_not_settle_it():
    assert "are apart" in ExactMatch(base=0, adapter=113, rows=120).verdict
    assert "do not settle" in ExactMatch(base=8, adapter=10, rows=20).verdict
    assert "base" not in ExactMatch(base=None, adapter=10, rows=20).verdict


def test_shares_of_a_results_file_become_counts_of_rows():
    results = {"rows": 120, "base": {"exact_match": 0.0}, "adapter": {"exact_match": 113 / 120}}
    assert exact_match(results) == ExactMatch(base=0, adapter=113, rows=120)
    assert exact_match({"rows": 120, "adapter": {"perplexity": 2.0}}) is None
    assert exact_match({}) is None
