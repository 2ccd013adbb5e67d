"""Attention inside documents: the definition in float64 decides, for values and for gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import accumulate
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topcoat.kernels import attention as kernel
from topcoat.kernels import attention_tiled as tiled
from topcoat.kernels.attention import Shape, attention_reference, document_attention
from topcoat.kernels.documents import StaticDocuments, documents

WIDTH = 16
PATHS = ["native", "tiled"]  # of which the first takes bf16 where there is a compiled library; else both are tiled
SHAPES = [Shape(0.25), Shape(0.25, window=3), Shape(0.3, softcap=2.0), Shape(0.2, window=5, softcap=1.5)]


def drawn(lengths: list[int], heads: int, groups: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """q, k, v and the gradient of the output, of documents side by side."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    sizes = [heads, groups, groups, heads]
    return [torch.randn(tokens, n, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for n in sizes]


def spans_of(lengths: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *accumulate(lengths)], lengths, strict=False))


def by_definition(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], shape: Shape) -> Tensor:
    """One document after the other through the definition."""
    parts = []
    for start, n in spans_of(lengths):
        one = [x[start : start + n].transpose(0, 1)[None] for x in (q, k, v)]  # (1, H, n, K)
        parts.append(attention_reference(*one, shape)[0].transpose(0, 1))
    return torch.cat(parts)


def with_gradients(function, q, k, v, grad) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def only(path: str) -> AbstractContextManager[object]:
    """Inside, nothing but that path is there, and the tiled one that takes everything."""
    return mock.patch.object(kernel, "PATHS", {name: kernel.PATHS[name] for name in (path, "tiled")})


def errors(found: list[Tensor], truth: list[Tensor], order: float) -> list[float]:
    """Errors of the values, relative to them, and of dQ, dK and dV, to the largest of the three, in the norm `order`.

    On their own dQ and dK may be nothing but rounding: with a window of 1 both are exactly zero.
    """
    sizes = [float(t.flatten().norm(order)) for t in truth]
    scales = [sizes[0], *[max(sizes[1:])] * 3]
    return [
        float((f.double() - t).flatten().norm(order)) / scale for f, t, scale in zip(found, truth, scales, strict=True)
    ]


def compared(lengths, heads, groups, shape, dtype, seed=0) -> tuple[list[float], list[float]]:
    """Errors of the kernel and of the definition computed in `dtype`, both against the definition in float64.

    In float32 the largest error counts; in bf16, where that is a matter of luck, the Euclidean one.
    """
    q, k, v, grad = drawn(lengths, heads, groups, dtype, seed)
    layout = documents(spans_of(lengths), sum(lengths))
    ours = with_gradients(lambda *x: document_attention(*x, layout, shape), q, k, v, grad)
    plain = with_gradients(lambda *x: by_definition(*x, lengths, shape), q, k, v, grad)
    wide = [x.double() for x in (q, k, v, grad)]
    truth = with_gradients(lambda *x: by_definition(*x, lengths, shape), *wide)
    order = torch.inf if dtype == torch.float32 else 2
    return errors(ours, truth, order), errors(plain, truth, order)


HEADS = st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)])
DRAWN_SHAPES = st.builds(
    Shape, st.sampled_from([0.1, 0.25]), st.none() | st.integers(1, 40), st.none() | st.floats(0.5, 30)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), HEADS, DRAWN_SHAPES, st.integers(0, 9))
def test_values_and_gradients_are_the_definitions_in_float32(lengths, heads, shape, seed):
    ours, _ = compared(lengths, *heads, shape, torch.float32, seed)
    assert max(ours) < 1e-5


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), HEADS, DRAWN_SHAPES, st.integers(0, 9))
def test_in_bf16_it_is_at_most_twice_as_far_off_as_the_definition_in_bf16(path, lengths, heads, shape, seed):
    with only(path):
        ours, plain = compared(lengths, *heads, shape, torch.bfloat16, seed)
    rounding = 2.0**-9  # of the result alone: what even an exact kernel is off by
    assert all(mine <= 2 * max(its, rounding) for mine, its in zip(ours, plain, strict=True))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), HEADS, DRAWN_SHAPES, st.integers(0, 99))
def test_values_and_gradients_hold_over_many_longer_documents(lengths, heads, shape, seed):
    ours, _ = compared(lengths, *heads, shape, torch.float32, seed)
    assert max(ours) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_documents_longer_than_a_tile_are_computed_alike(shape, dtype):
    with only("tiled"):
        ours, plain = compared([tiled.TILE + 9, tiled.TILE - 1, 3, 2 * tiled.TILE], 4, 2, shape, dtype)
    allowed = 1e-5 if dtype == torch.float32 else 2 * max(*plain, 2.0**-9)
    assert max(ours) < allowed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_right_in_double_precision(shape, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", 3)  # several tiles in one short document
    lengths = [7, 4]
    layout = documents(spans_of(lengths), 11)
    parts = [x[..., :2].contiguous().requires_grad_() for x in drawn(lengths, 2, 1, torch.float64)[:3]]
    assert torch.autograd.gradcheck(lambda *x: document_attention(*x, layout, shape), parts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "path"), [(torch.float32, "tiled"), *((torch.bfloat16, p) for p in PATHS)], ids=str)
def test_changing_one_document_leaves_the_others_bit_for_bit(shape, dtype, path):
    lengths = [20, 17, 18, 5]
    layout = documents(spans_of(lengths), 60)
    before = drawn(lengths, 4, 2, dtype)
    after = [x.clone() for x in before]
    for tensor in after:
        tensor[:20] *= -3.0  # document 0, whose first token is also what padding points at
    with only(path):
        first = with_gradients(lambda *x: document_attention(*x, layout, shape), *before)
        second = with_gradients(lambda *x: document_attention(*x, layout, shape), *after)
    for old, new in zip(first, second, strict=True):
        assert torch.equal(old[20:], new[20:])
        assert not torch.equal(old[:20], new[:20])


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_a_position_sees_nothing_to_its_right(shape):
    q, k, v, _ = drawn([12], 2, 2, torch.float32)
    layout = documents([(0, 12)], 12)
    before = document_attention(q, k, v, layout, shape)
    k[8:], v[8:] = 5.0, -5.0
    assert torch.equal(document_attention(q, k, v, layout, shape)[:8], before[:8])


def test_positions_outside_all_documents_give_and_get_nothing():
    q, k, v, grad = drawn([30], 2, 1, torch.float32)
    layout = documents([(0, 10), (15, 12)], 30)  # padded rows: 10..14 and 27..29 belong to nobody
    out, *grads = with_gradients(lambda *x: document_attention(*x, layout, Shape(0.25)), q, k, v, grad)
    nobody = [*range(10, 15), *range(27, 30)]
    assert not out[nobody].any()
    assert not any(g[nobody].any() for g in grads)
    alone = by_definition(q[15:27], k[15:27], v[15:27], [12], Shape(0.25))
    torch.testing.assert_close(out[15:27], alone)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_torchs_flags_are_left_as_they_were_found(precision):
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = precision
        q, k, v, grad = drawn([9, 4], 2, 1, torch.bfloat16)
        layout = documents(spans_of([9, 4]), 13)
        with only("tiled"):
            with_gradients(lambda *x: document_attention(*x, layout, Shape(0.25, window=3)), q, k, v, grad)
        assert matmul.fp32_precision == precision
        with pytest.raises(RuntimeError):
            document_attention(q, k[..., :-1], v, layout, Shape(0.25, window=3))
        assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = before


def test_inputs_need_not_be_contiguous():
    q, k, v, grad = drawn([9, 8], 2, 1, torch.float32)
    layout = documents(spans_of([9, 8]), 17)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v, grad)]
    for a, b in zip(
        with_gradients(lambda *x: document_attention(*x, layout, Shape(0.25)), *strided),
        with_gradients(lambda *x: document_attention(*x, layout, Shape(0.25)), q, k, v, grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_borders_that_the_host_does_not_know_are_refused_without_a_gpu():
    q, k, v, _ = drawn([8], 2, 2, torch.float32)
    layout = StaticDocuments(8, torch.tensor([0, 8], dtype=torch.int32), 8)
    with pytest.raises(ValueError, match="borders on the device alone want FlashAttention: a GPU, half precision"):
        document_attention(q, k, v, layout, Shape(0.25))
