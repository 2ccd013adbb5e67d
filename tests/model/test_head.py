"""The head as a matrix: hidden states times it are the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.model.families import FAMILIES
from topcoat.model.head import plain_head
from topcoat.model.tiny import tiny_model

IDS = torch.arange(3, 30)[None]


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_hidden_states_times_the_head_are_the_logits(model_type):
    model = tiny_model(model_type)
    head = plain_head(model)
    logits = head.decoder(IDS).last_hidden_state @ head.weight.T
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    assert_close(logits, model(IDS).logits)
    assert (head.softcap is not None) == (model_type == "gemma2")


def test_an_architecture_in_no_table_has_no_plain_head():
    assert plain_head(tiny_model("olmo2")) is None


def test_a_head_with_a_bias_is_not_taken_for_a_matrix():
    model = tiny_model("llama")
    model.lm_head = torch.nn.Linear(64, 512, bias=True)
    assert plain_head(model) is None


@torch.no_grad()
def test_a_head_that_trains_is_the_one_that_counts_and_the_base_when_switched_off():
    model = tiny_model("llama")
    adapters = attach(model, LoraConfig(r=2, modules_to_save=["lm_head"]))
    adapters.parameters()["lm_head.weight"].mul_(2)
    doubled = plain_head(model).weight
    with adapters.off():
        assert torch.equal(doubled, 2 * plain_head(model).weight)
