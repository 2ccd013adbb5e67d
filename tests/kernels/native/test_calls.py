"""Calls that are put down: made in order, at the end or before anything else reads, and with their tensors kept."""

from __future__ import annotations

import weakref

import pytest
import torch
from native_here import ISAS, drawn, native

from topcoat.kernels.gated import gated
from topcoat.kernels.native import calls
from topcoat.kernels.native.calls import at_once, settle, together, waits
from topcoat.kernels.rms_norm import rms_norm
from topcoat.kernels.rope import rope_

pytestmark = pytest.mark.skipif(not ISAS, reason="there is no compiler here")


def some():
    x, weight = drawn(6, 32, seed=0), drawn(32, seed=1)
    angles = drawn(6, 8, seed=2)
    return x, weight, angles.cos(), angles.sin()


def test_calls_are_made_in_order_when_the_with_ends():
    x, weight, cos, sin = some()
    wanted = rope_(rms_norm(x, weight, 1e-5)[0].view(6, 2, 16), cos, sin).view(6, 32)
    with together():
        out = torch.zeros(6, 32)
        rms_norm(x, weight, 1e-5, out=out)
        rope_(out.view(6, 2, 16), cos, sin)
        assert waits()
        assert not out.any()
    assert not waits()
    assert torch.equal(out, wanted)


def test_what_waits_is_made_when_it_is_asked_for_when_there_is_enough_and_before_other_functions(monkeypatch):
    x, weight, *_ = some()
    wanted = rms_norm(x, weight, 1e-5)[0]
    with together():
        out = torch.zeros(6, 32)
        rms_norm(x, weight, 1e-5, out=out)
        settle()
        assert torch.equal(out, wanted)
        rms_norm(x, weight, 1e-5, out=out.zero_())
        h = gated(out, "silu")
        assert torch.equal(h, gated(wanted, "silu"))
        monkeypatch.setattr(calls, "MOST", 2)
        rms_norm(x, weight, 1e-5, out=out.zero_())
        assert waits()
        rms_norm(x, weight, 1e-5)
        assert not waits()
        assert torch.equal(out, wanted)


def test_the_tensors_of_a_call_are_kept_until_it_is_made():
    x, weight, *_ = some()
    wanted = rms_norm(x * 2, weight, 1e-5)[0]
    out, double = torch.zeros(6, 32), x * 2
    kept = weakref.ref(double)
    with together():
        rms_norm(double, weight, 1e-5, out=out)
        del double
        assert kept() is not None
        torch.full((6, 32), torch.nan)  # would take the memory
    assert kept() is None
    assert torch.equal(out, wanted)


def test_a_with_inside_another_leaves_the_calls_to_it():
    x, weight, *_ = some()
    with together():
        with together():
            rms_norm(x, weight, 1e-5)
        assert waits()


def test_at_once_nothing_waits_and_what_waited_comes_first():
    x, weight, *_ = some()
    wanted = rms_norm(x, weight, 1e-5)[0]
    with together():
        out = torch.zeros(6, 32)
        rms_norm(x, weight, 1e-5, out=out)
        with at_once():
            assert torch.equal(out, wanted)
            assert torch.equal(rms_norm(x, weight, 1e-5)[0], wanted)
        rms_norm(x, weight, 1e-5)
        assert waits()


def test_an_error_drops_what_waits():
    x, weight, *_ = some()
    out = torch.zeros(6, 32)

    def fails():
        with together():
            rms_norm(x, weight, 1e-5, out=out)
            x.view(5)

    with pytest.raises(RuntimeError, match="shape"):
        fails()
    assert not waits()
    assert not out.any()
    rms_norm(x, weight, 1e-5, out=out)
    assert out.any()


def test_without_the_library_nothing_waits():
    x, weight, *_ = some()
    with native("off"), together():
        rms_norm(x, weight, 1e-5)
        assert not waits()
