"""The figures of a proof, and that no figure hides another."""

from __future__ import annotations

import math

import pytest
import torch

from topcoat.errors import Refused
from topcoat.exporting.proof import TOLERANCES, compare, logits_of
from topcoat.model.tiny import tiny_model


def drawn(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 11, generator=generator) for n in lengths]


def test_equal_logits_are_off_by_nothing():
    some = drawn(3, 5)
    proof = compare(some, [x.clone() for x in some], torch.float32)
    assert (proof.prompts, proof.tokens) == (2, 8)
    assert (proof.relative_error, proof.max_abs_error, proof.top1_agreement) == (0.0, 0.0, 1.0)
    assert proof.kl == pytest.approx(0, abs=1e-6)
    assert proof.holds


def test_the_figures_are_those_of_float64():
    expected, found = drawn(3, 5), [x + 0.1 * y for x, y in zip(drawn(3, 5), drawn(3, 5, seed=1), strict=True)]
    proof = compare(expected, found, torch.bfloat16)
    pairs = [(e.double(), f.double()) for e, f in zip(expected, found, strict=True)]
    assert proof.relative_error == pytest.approx(max(float((f - e).norm() / e.norm()) for e, f in pairs), rel=1e-5)
    assert proof.max_abs_error == pytest.approx(max(float((f - e).abs().max()) for e, f in pairs), rel=1e-5)
    kl = [float((e.softmax(-1) * (e.log_softmax(-1) - f.log_softmax(-1))).sum()) for e, f in pairs]
    assert proof.kl == pytest.approx(sum(kl) / 8, rel=1e-4)
    same = [bool(a == b) for e, f in pairs for a, b in zip(e.argmax(-1), f.argmax(-1), strict=True)]
    assert proof.top1_agreement == pytest.approx(sum(same) / 8)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_prompt_that_is_no_number_breaks_the_proof_wherever_it_stands(which, value):
    expected = drawn(2, 2, 2)
    found = [x.clone() for x in expected]
    found[which][1, 4] = value
    proof = compare(expected, found, torch.bfloat16)
    assert not proof.holds
    assert proof.as_json()["verified"] is False


def test_the_worst_prompt_decides():
    expected = drawn(50, 2)
    found = [expected[0].clone(), expected[1] * 1.1]
    assert compare(expected, found, torch.bfloat16).relative_error == pytest.approx(0.1, rel=1e-3)


def test_a_broken_proof_is_refused_with_its_figures():
    expected = drawn(4)
    proof = compare(expected, [expected[0] * 1.02], torch.bfloat16)
    with pytest.raises(Refused) as caught:
        proof.require("the merged model in out")
    text = str(caught.value)
    assert "the merged model in out does not compute what it should: its logits are off by 2.00e-02" in text
    assert "(at most 1e-02 is rounding), top-1 agreement 100.0%" in text
    assert "nothing was published; run again with --debug" in text
    with pytest.raises(Refused, match="nothing was published; name another type"):
        proof.require("the GGUF", "name another type")


def test_float32_is_held_to_a_hundredth_of_what_bf16_may_lose():
    assert TOLERANCES[torch.float32] == TOLERANCES[torch.bfloat16] / 100
    expected = drawn(4)
    off = [expected[0] * (1 + 5e-3)]
    assert compare(expected, off, torch.bfloat16).holds
    assert not compare(expected, off, torch.float32).holds


def test_logits_are_those_of_each_prompt_alone():
    model = tiny_model("llama")
    one, two = logits_of(model, [[5, 6, 7], [9]])
    assert (one.shape, two.shape) == ((3, 512), (1, 512))
    with torch.no_grad():
        assert torch.equal(one, model(torch.tensor([[5, 6, 7]]), use_cache=False).logits[0])
