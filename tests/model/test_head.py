"""The head as a matrix: hidden states times it are the model's own logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.kernels.linear_cross_entropy import linear_cross_entropy
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


@pytest.mark.parametrize(
    ("model_type", "own"),
    [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.0625}), ("cohere2", {"logit_scale": 0.0625})],
)
def test_a_scaled_head_gives_the_loss_of_the_models_own_logits(model_type, own):
    """And its gradient: the logits never exist at once."""
    model = tiny_model(model_type, **own)
    head, targets = plain_head(model), torch.arange(27) * 7 % 512
    hidden = head.decoder(IDS).last_hidden_state[0].detach().requires_grad_()
    loss = linear_cross_entropy(hidden, head.weight.detach(), targets, head.softcap, logit_scale=head.scale)
    logits = model(IDS).logits[0]
    assert_close(loss, F.cross_entropy(logits, targets, reduction="sum"))
    loss.backward()
    probabilities = logits.detach().softmax(-1)
    probabilities[torch.arange(27), targets] -= 1
    assert_close(hidden.grad, head.scale * probabilities @ head.weight.detach(), rtol=1e-4, atol=1e-6)


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
