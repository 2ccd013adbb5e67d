"""A projection with its adapters, in torch's calls and as one call of compiled code: float64 says what is right."""

import ctypes
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import drawn, native, threads

from topcoat.kernels.arena import Arena
from topcoat.kernels.gated import ACTIVATIONS, gated_backward_reference, gated_reference
from topcoat.kernels.native.library import native_library
from topcoat.kernels.product import Gating
from topcoat.kernels.product_native import _Outer
from topcoat.kernels.projection import LowRank, Projection

CPU, BF16 = torch.device("cpu"), torch.bfloat16
AMX = native_library() is not None and native_library().isa == "avx512_amx"
WAYS = ["avx512", *(["avx512_amx"] if AMX else [])]
"""Torch's calls, and the compiled ones where this machine has them."""
NEAR = {"rtol": 2**-6, "atol": 6e-2}
"""Up to what products of bf16 round when each term is rounded by itself, h and u among them."""


class Lent:
    """A weight that is just there."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, tuple(matrix.shape)

    @contextmanager
    def lend(self, dtype):
        yield self.matrix.to(dtype)


def exactly(*shape, seed):
    """Numbers that are the same in bf16 and in float64."""
    return drawn(*shape, seed=seed, scale=shape[-1] ** -0.5).to(BF16).float()


def made(I, parts, *, group=1, frozen=(), bias=False, seed=0):
    """A projection of linears with (rows, rank) `parts`, its matrix, and every adapter's term in float64."""
    adapters, first = [], 0
    for at, (rows, rank) in enumerate(parts):
        if rank:
            A = exactly(rank, I // group, seed=seed + 10 + at).requires_grad_("A" not in frozen)
            B = exactly(rows, rank, seed=seed + 20 + at).requires_grad_("B" not in frozen)
            adapters.append(LowRank(A, B, 2.0, first, group=group))
        first += rows
    W, b = exactly(first, I, seed=seed + 30), exactly(1, first, seed=seed + 31)[0].to(BF16) if bias else None
    stack = Projection(Lent(W), b, adapters)
    stack.refresh(BF16, CPU)
    return stack, W.double(), None if b is None else b.double()


def update(stack):
    """scale B A of all adapters (O, I) in float64."""
    total = torch.zeros(stack.out_features, stack.in_features, dtype=torch.float64)
    for a in stack.adapters:
        term = a.scale * a.lora_B.detach().double() @ a.wide_A().detach().double()
        total[a.first : a.first + len(term)] += term
    return total


def run_forward(stack, x, **asked):
    h = x.new_empty(len(x), stack.rank)
    out = stack.forward(x, x.new_empty(len(x), stack.out_features), h, adapted=True, have_h=False, seed=None, **asked)
    return out, h


def by_definition(adapter, x, g, positive=False):
    """The gradients of A and B in float64; `positive` takes their absolute values."""
    A, B = adapter.wide_A().detach().double(), adapter.lora_B.detach().double()
    A, B = (A.abs(), B.abs()) if positive else (A, B)
    own = g.double()[:, adapter.first : adapter.first + len(B)]
    return adapter.scale * adapter.narrow((own @ B).T @ x.double()), adapter.scale * own.T @ (x.double() @ A.T)


SHAPES = {
    "T": st.integers(1, 150),
    "I": st.sampled_from([8, 32, 72, 160]),
    "parts": st.lists(st.tuples(st.integers(1, 70), st.sampled_from([0, 1, 5, 16, 33])), min_size=1, max_size=3),
    "seed": st.integers(0, 2**30),
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(group=st.sampled_from([1, 4]), bias=st.booleans(), frozen=st.sampled_from(["", "A", "B"]), **SHAPES)
def test_forward_and_backward_are_float64s(way, T, I, parts, group, bias, frozen, seed):
    with native(way):
        stack, W, b = made(I, parts, group=group, frozen=frozen, bias=bias, seed=seed)
        x, g = exactly(T, I, seed=seed + 1).to(BF16), exactly(T, stack.out_features, seed=seed + 2).to(BF16)
        add = exactly(T, stack.out_features, seed=seed + 3).to(BF16)
        out, h = run_forward(stack, x, add=add)
        dx = x.new_empty(T, I)
        grads = stack.backward(g, dx, x, h, Arena(CPU), None)
    whole = W + update(stack)
    exact = x.double() @ whole.T + add.double() + (0 if b is None else b)
    torch.testing.assert_close(out.double(), exact, **NEAR)
    torch.testing.assert_close(dx.double(), g.double() @ whole, **NEAR)
    assert len(grads) == len(stack.parameters)
    for n, a in enumerate(stack.adapters):
        found, right = grads[2 * n : 2 * n + 2], by_definition(a, x, g)
        largest = by_definition(a, x.abs(), g.abs(), positive=True)  # had no two terms cancelled
        for grad, exact, terms, parameter in zip(found, right, largest, (a.lora_A, a.lora_B), strict=True):
            if not parameter.requires_grad:
                assert grad is None
                continue
            assert grad.dtype == parameter.dtype
            assert ((grad.double() - exact).abs() <= 2**-6 * terms + 1e-9).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("half", [32, 40, 24])
def test_the_gate_is_that_of_its_definition_on_the_way_there_and_back(way, activation, half):
    with native(way):
        stack, W, _ = made(64, [(half, 4), (half, 4)])
        x = exactly(70, 64, seed=1).to(BF16)
        beside = x.new_empty(70, half)
        out, _ = run_forward(stack, x, gating=Gating(activation, beside))
        back, Wd, _ = made(half, [(96, 4)], seed=5)
        g, gate_up, dh = exactly(70, 96, seed=2).to(BF16), out.clone(), x.new_empty(70, half)
        inner = exactly(70, 4, seed=3).to(BF16)
        grads = back.backward(g, dh, dh, inner, Arena(CPU), None, Gating(activation, gate_up, backward=True))
    torch.testing.assert_close(out.double(), x.double() @ (W + update(stack)).T, **NEAR)
    torch.testing.assert_close(beside.double(), gated_reference(out, activation).double(), **NEAR)
    exact_h, exact_d = gated_backward_reference(g.double() @ (Wd + update(back)), out.double(), activation)
    torch.testing.assert_close(dh.double(), exact_h, **NEAR)
    torch.testing.assert_close(gate_up.double(), exact_d, **NEAR)
    dA = 2 * (g.double() @ back.adapters[0].lora_B.detach().double()).T @ exact_h  # of what the gate left in dh
    torch.testing.assert_close(grads[0].double(), dA, rtol=2**-5, atol=2**-5 * float(dA.abs().max()))


@pytest.mark.skipif(not AMX, reason="needs AMX tiles")
def test_no_thread_changes_a_bit():
    answers = []
    for count in (1, 2, 3):
        with threads(count):
            stack, _, _ = made(160, [(70, 16), (40, 5)])
            x, g = exactly(150, 160, seed=1).to(BF16), exactly(150, 110, seed=2).to(BF16)
            out, h = run_forward(stack, x)
            dx = torch.empty_like(x)
            answers.append([out, h, *stack.backward(g, dx, x, h, Arena(CPU), None), dx])
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_an_h_that_is_known_is_read_and_a_base_alone_reads_none(way):
    with native(way):
        stack, W, _ = made(64, [(48, 8)])
        x, h = exactly(40, 64, seed=1).to(BF16), exactly(40, 8, seed=2).to(BF16)
        kept, out = h.clone(), x.new_empty(40, 48)
        stack.forward(x, out, h, adapted=True, have_h=True, seed=None)
        B = stack.adapters[0].lora_B.detach().double()
        torch.testing.assert_close(out.double(), x.double() @ W.T + 2 * kept.double() @ B.T, **NEAR)
        assert torch.equal(h, kept)
        stack.forward(x, out, h, adapted=False, have_h=False, seed=None)
        torch.testing.assert_close(out.double(), x.double() @ W.T, **NEAR)
        assert torch.equal(h, kept)


@pytest.mark.parametrize("way", WAYS)
def test_dropout_drops_each_adapters_own_input_and_no_more(way):
    """The plain definition in float64, its masks drawn again from the seed and the adapter's place."""
    with native(way):
        A, C = (exactly(4, 64, seed=n).abs().requires_grad_() for n in (1, 2))
        B, D = (exactly(32, 4, seed=n).requires_grad_() for n in (3, 4))
        stack = Projection(
            Lent(exactly(64, 64, seed=5)), None, [LowRank(A, B, 2.0, 0, 0.5), LowRank(C, D, 1.0, 32, 0.25)]
        )
        stack.refresh(BF16, CPU)
        x, g, seed = exactly(400, 64, seed=6).to(BF16), exactly(400, 64, seed=7).to(BF16), 11
        h = x.new_empty(400, 8)
        out = stack.forward(x, x.new_empty(400, 64), h, adapted=True, have_h=False, seed=seed)
        dx = torch.empty_like(x)
        grads = stack.backward(g, dx, x, h, Arena(CPU), seed)
    masks = []
    for at, p in enumerate((0.5, 0.25)):
        generator = torch.Generator().manual_seed(seed + at)
        masks.append((torch.empty(400, 64).uniform_(generator=generator) >= p).double() / (1 - p))
        assert float((masks[at] == 0).double().mean()) == pytest.approx(p, abs=0.02)
    wide = x.double().requires_grad_()
    factors = [t.detach().double().requires_grad_() for t in (A, B, C, D)]
    terms = [2.0 * (wide * masks[0]) @ factors[0].T @ factors[1].T, (wide * masks[1]) @ factors[2].T @ factors[3].T]
    exact = wide @ stack.weight.matrix.double().T + torch.cat(terms, 1)
    exact.backward(g.double())
    torch.testing.assert_close(out.double(), exact.detach(), **NEAR)
    torch.testing.assert_close(dx.double(), wide.grad, **NEAR)
    for found, truth in zip(grads, factors, strict=True):
        torch.testing.assert_close(found.double(), truth.grad, rtol=2**-4, atol=2**-5 * float(truth.grad.abs().max()))


@pytest.mark.parametrize("way", WAYS)
def test_two_adapters_on_the_same_rows_of_which_one_is_frozen(way):
    """As LoRA from PiSSA's start has them: what trains, and what is taken away again."""
    with native(way):
        A, B, C, D = (exactly(*shape, seed=n) for n, shape in enumerate([(8, 64), (48, 8), (4, 64), (48, 4)]))
        A.requires_grad_(), B.requires_grad_()
        stack = Projection(Lent(exactly(48, 64, seed=9)), None, [LowRank(A, B, 2.0, 0), LowRank(C, D, -2.0, 0)])
        stack.refresh(BF16, CPU)
        x, g = exactly(40, 64, seed=5).to(BF16), exactly(40, 48, seed=6).to(BF16)
        out, h = run_forward(stack, x)
        dx = torch.empty_like(x)
        dA, dB, dC, dD = stack.backward(g, dx, x, h, Arena(CPU), None)
    whole = stack.weight.matrix.double() + update(stack)
    torch.testing.assert_close(out.double(), x.double() @ whole.T, **NEAR)
    torch.testing.assert_close(dx.double(), g.double() @ whole, **NEAR)
    assert dC is None
    assert dD is None
    for grad, exact in zip((dA, dB), by_definition(stack.adapters[0], x, g), strict=True):
        torch.testing.assert_close(grad.double(), exact, rtol=2**-5, atol=2**-6 * float(exact.abs().max()))


@pytest.mark.parametrize("way", WAYS)
def test_masters_of_another_dtype_are_read_as_what_they_are(way):
    with native(way):
        A, B = exactly(8, 64, seed=1).double().requires_grad_(), exactly(48, 8, seed=2).double().requires_grad_()
        stack = Projection(Lent(exactly(48, 64, seed=3)), None, [LowRank(A, B, 2.0, 0)])
        stack.refresh(BF16, CPU)
        x, g = exactly(40, 64, seed=4).to(BF16), exactly(40, 48, seed=5).to(BF16)
        out, h = run_forward(stack, x)
        grads = stack.backward(g, None, x, h, Arena(CPU), None)
    torch.testing.assert_close(out.double(), x.double() @ (stack.weight.matrix.double() + update(stack)).T, **NEAR)
    assert [grad.dtype for grad in grads] == [torch.float64] * 2


@pytest.mark.parametrize("way", WAYS)
def test_what_trains_may_change_between_steps(way):
    """A factor that is frozen, or thawed, after a step has been taken."""
    with native(way):
        stack, _, _ = made(64, [(48, 8)])
        x, g = exactly(40, 64, seed=1).to(BF16), exactly(40, 48, seed=2).to(BF16)
        for train_A in (True, False, True):
            stack.adapters[0].lora_A.requires_grad_(train_A)
            stack.refresh(BF16, CPU)
            _, h = run_forward(stack, x)
            dA, dB = stack.backward(g, None, x, h, Arena(CPU), None)
            assert (dA is not None) == train_A
            assert dB is not None


@pytest.mark.skipif(not AMX, reason="no compiled products here")
@pytest.mark.parametrize("ranks", [(16, 16), (16, 4, 30), (33, 16)])
@pytest.mark.parametrize("tokens", [32, 48, 700])
def test_the_scratch_counted_is_enough_for_the_gradient_of_each_factor_by_itself(ranks, tokens):
    width, library = 192, native_library()
    projection, *_ = made(width, [(32, rank) for rank in ranks])
    for rank in ranks:  # dA of one adapter where another's A is frozen
        sizes = {"t": tokens, "r": rank, "n": width, "out_row": width, "u_row": sum(ranks), "x_row": width}
        needed = library.outer_bytes(ctypes.byref(_Outer(**sizes, threads=2)))
        assert projection._native._bytes(2, tokens) >= needed
