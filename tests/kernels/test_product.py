"""One product with all that is added to it: float64 says what is right, and no thread changes a bit of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import DTYPES, drawn, gaps_are_untouched, native, threads

from topcoat.kernels.gated import ACTIVATIONS, gated_backward_reference, gated_reference
from topcoat.kernels.native.library import native_library
from topcoat.kernels.product import Gating, outer_sum, product

AMX = native_library() is not None and native_library().isa == "avx512_amx"
WAYS = ["avx512", *(["avx512_amx"] if AMX else [])]
"""Torch's products, and the compiled ones where this machine has them."""

shapes = {
    "M": st.integers(32, 150),
    "K": st.integers(1, 140),
    "R": st.sampled_from([0, 1, 5, 16, 33]),
    "gap": st.sampled_from([0, 3, 32]),
    "transposed": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def assert_close(actual, exact, way="avx512_amx"):
    """Compiled code rounds once; torch's bf16 products round after each term, so they lose more."""
    once = way == "avx512_amx" or actual.dtype == torch.float32
    near = {"rtol": 2**-8 + 2e-5, "atol": 2e-4} if once else {"rtol": 2**-6, "atol": 6e-2}
    torch.testing.assert_close(actual.double(), exact, **near)


def between(gap, way):
    """The gap between rows; none for torch, which reads it where a matrix has one column."""
    return gap if way == "avx512_amx" else 0


def factors(M, N, K, R, *, dtype, gap, transposed, seed):
    """a, b, the low-rank pair or None, and their product in float64."""
    a = drawn(M, K, seed=seed, dtype=dtype, gap=gap)
    b = drawn(*((N, K) if transposed else (K, N)), seed=seed + 1, dtype=dtype, gap=gap, scale=K**-0.5)
    exact = a.double() @ (b.T if transposed else b).double()
    if not R:
        return a, b, None, exact
    e = drawn(M, R, seed=seed + 2, dtype=dtype, gap=gap)
    f = drawn(*((N, R) if transposed else (R, N)), seed=seed + 3, dtype=dtype, gap=gap, scale=R**-0.5)
    return a, b, (e, f), exact + e.double() @ (f.T if transposed else f).double()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 200), dtype=st.sampled_from(DTYPES), adds=st.sampled_from(["", "matrix", "row"]), **shapes)
def test_the_product_is_float64s_with_its_low_rank_term_and_what_is_added(
    way, M, N, K, R, dtype, gap, transposed, adds, seed
):
    gap = between(gap, way)
    a, b, low_rank, exact = factors(M, N, K, R, dtype=dtype, gap=gap, transposed=transposed, seed=seed)
    add = None if not adds else drawn(*((M, N) if adds == "matrix" else (N,)), seed=seed + 4, dtype=dtype)
    out = drawn(M, N, seed=0, dtype=dtype, gap=gap)
    with native(way):
        assert product(a, b, out, low_rank, add, transposed=transposed) is out
    assert_close(out, exact + (0 if add is None else add.double()), way)
    assert not gap or gaps_are_untouched(out, gap)


@pytest.mark.skipif(not AMX, reason="needs AMX tiles")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("M", "N", "K", "R"), [(70, 700, 96, 16), (40, 48, 9000, 7), (200, 64, 3072, 32)])
def test_blocks_of_columns_and_chunks_of_a_long_sum_leave_nothing_out(M, N, K, R, transposed):
    a, b, low_rank, exact = factors(M, N, K, R, dtype=torch.bfloat16, gap=0, transposed=transposed, seed=5)
    answers = []
    for count in (1, 2, 3, 7):
        with threads(count):
            answers.append(product(a, b, a.new_empty(M, N), low_rank, transposed=transposed))
    assert_close(answers[0], exact)
    assert all(torch.equal(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(F=st.sampled_from([16, 48, 80, 33]), dtype=st.sampled_from(DTYPES), biased=st.booleans(), **shapes)
def test_a_gate_on_the_way_out_is_the_gate_of_what_was_stored(
    way, activation, M, F, K, R, dtype, gap, transposed, biased, seed
):
    gap = between(gap, way)
    a, b, low_rank, exact = factors(M, 2 * F, K, R, dtype=dtype, gap=gap, transposed=transposed, seed=seed)
    bias = drawn(2 * F, seed=seed + 4, dtype=dtype) if biased else None
    gate_up, h = drawn(M, 2 * F, seed=0, dtype=dtype, gap=gap), drawn(M, F, seed=0, dtype=dtype, gap=gap)
    with native(way):
        product(a, b, gate_up, low_rank, bias, Gating(activation, h), transposed=transposed)
    assert_close(gate_up, exact if bias is None else exact + bias.double(), way)
    torch.testing.assert_close(h.double(), gated_reference(gate_up.double(), activation), rtol=2**-7, atol=1e-4)
    assert not gap or (gaps_are_untouched(h, gap) and gaps_are_untouched(gate_up, gap))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(F=st.integers(1, 90), dtype=st.sampled_from(DTYPES), **shapes)
def test_the_gate_backwards_takes_the_product_for_its_gradient(
    way, activation, M, F, K, R, dtype, gap, transposed, seed
):
    gap = between(gap, way)
    a, b, low_rank, dh = factors(M, F, K, R, dtype=dtype, gap=gap, transposed=transposed, seed=seed)
    gate_up = drawn(M, 2 * F, seed=seed + 4, dtype=dtype, gap=gap)
    h, dgate_up = gated_backward_reference(dh, gate_up.double(), activation)
    out = drawn(M, F, seed=0, dtype=dtype, gap=gap)
    with native(way):
        product(a, b, out, low_rank, gating=Gating(activation, gate_up, backward=True), transposed=transposed)
    assert_close(out, h, way)
    assert_close(gate_up, dgate_up, way)
    assert not gap or (gaps_are_untouched(out, gap) and gaps_are_untouched(gate_up, gap))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30, deadline=None)
@given(
    T=st.integers(32, 200),
    R=st.integers(1, 70),
    N=st.integers(1, 150),
    gap=st.sampled_from([0, 7]),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_an_outer_sum_is_float64s_to_float32(way, T, R, N, gap, count, seed):
    gap = between(gap, way)
    u = drawn(T, R, seed=seed, dtype=torch.bfloat16, gap=gap)
    x = drawn(T, N, seed=seed + 1, dtype=torch.bfloat16, gap=gap)
    with native(way), threads(count):
        answer = outer_sum(u, x)
    exact = u.double().T @ x.double()
    near = {"rtol": 1e-5, "atol": 1e-4} if answer.dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-2}
    torch.testing.assert_close(answer.double(), exact, **near)
    assert way != "avx512_amx" or answer.dtype == torch.float32


def test_a_nan_reaches_every_number_that_depends_on_it_and_no_other():
    a, b, _, exact = factors(64, 64, 64, 0, dtype=torch.bfloat16, gap=0, transposed=True, seed=1)
    a[3, 5] = torch.nan
    out = product(a, b, a.new_empty(64, 64), transposed=True)
    assert out[3].isnan().all()
    assert out.isnan().sum() == 64
    assert_close(out[4:], exact[4:])
