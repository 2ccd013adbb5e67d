"""The attention named "topcoat": what transformers' eager attention computes, padded, cached, or packed."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from topcoat.model.attention import NAME, attention_inputs, register
from topcoat.model.families import FAMILIES
from topcoat.model.tiny import tiny_model

IDS = [torch.arange(5, 5 + n) * 7 % 300 for n in (40, 13, 29, 1, 36, 40, 8, 22)]


def model_with(model_type: str, attention: str) -> PreTrainedModel:
    register()
    model = tiny_model(model_type)
    model.set_attn_implementation(attention)
    return model


def test_the_name_is_known_to_transformers_and_registering_twice_changes_nothing():
    register()
    before = AttentionInterface()[NAME], AttentionMaskInterface()[NAME]
    register()
    assert (AttentionInterface()[NAME], AttentionMaskInterface()[NAME]) == before


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_padded_row_is_the_row_alone(model_type, side, size):
    model = model_with(model_type, NAME)
    eager = model_with(model_type, "eager")
    rows = IDS[:size]
    longest = max(map(len, rows))
    ids, mask = torch.zeros(size, longest, dtype=torch.int64), torch.zeros(size, longest, dtype=torch.int64)
    places = [slice(longest - len(r), longest) if side == "left" else slice(0, len(r)) for r in rows]
    for b, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[b, place], mask[b, place] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for b, (row, place) in enumerate(zip(rows, places, strict=True)):
        assert_close(logits[b, place], eager(row[None], use_cache=False).logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_token_after_the_cache_is_the_token_in_the_whole_prompt(model_type):
    model, eager = model_with(model_type, NAME), model_with(model_type, "eager")
    ids = IDS[0][None]
    truth = eager(ids, use_cache=False).logits[0]
    out = model(ids[:, :33], use_cache=True)  # one more than the tiny sliding window
    parts = [out.logits[0]]
    for at in range(33, 40):
        out = model(ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits[0])
    assert_close(torch.cat(parts), truth, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_documents_in_one_row_are_each_computed_alone(model_type):
    model, eager = model_with(model_type, NAME), model_with(model_type, "eager")
    lengths = [len(row) for row in IDS]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    spans = list(zip(starts, lengths, strict=True))
    logits = model(**attention_inputs(model, torch.cat(IDS)[None], positions, spans), use_cache=False).logits[0]
    for row, (start, n) in zip(IDS, spans, strict=True):
        assert_close(logits[start : start + n], eager(row[None], use_cache=False).logits[0], rtol=1e-4, atol=1e-4)


def test_other_implementations_are_handed_what_transformers_expects():
    model = model_with("llama", "sdpa")
    inputs = attention_inputs(model, IDS[0][None], torch.arange(40)[None], [(0, 40)])
    assert sorted(inputs) == ["input_ids", "position_ids"]
