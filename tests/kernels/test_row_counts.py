"""Rows are rounded up, and never to more than there are tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from topcoat.kernels.row_counts import last_rows


@given(st.integers(1, 9000), st.integers(0, 8999))
def test_the_last_block_computes_all_that_is_needed_in_few_numbers(tokens, needed):
    needed = min(needed, tokens)
    rows = last_rows(needed, tokens)
    assert needed <= rows <= tokens
    assert rows == tokens or rows % (256 if tokens >= 1024 else 64) == 0
    assert rows == tokens or rows <= 0.9 * tokens


def test_small_batches_are_rounded_finely_and_large_ones_coarsely():
    assert [last_rows(n, 1000) for n in (0, 1, 64, 65, 832, 900)] == [0, 64, 64, 128, 832, 1000]
    assert [last_rows(n, 2048) for n in (1, 256, 257, 1792, 1793)] == [256, 256, 512, 1792, 2048]
