"""Modules trained whole beside the adapter: a float32 copy computes, the original waits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.adapters.trained_copy import TrainedCopy


def test_a_fresh_copy_computes_what_the_original_computes_in_its_dtype():
    linear = nn.Linear(8, 4).bfloat16()
    x = torch.randn(3, 8).bfloat16()
    copied = TrainedCopy(linear)
    assert {p.dtype for p in copied.copy.parameters()} == {torch.float32}
    assert copied(x).dtype == torch.bfloat16
    assert torch.equal(copied(x), linear(x))


def test_the_copy_moves_by_less_than_bf16_can_show_and_the_original_not_at_all():
    linear = nn.Linear(8, 4).bfloat16().requires_grad_(False)
    before = linear.weight.clone()
    copied = TrainedCopy(linear)
    start = copied.copy.weight.detach().clone()
    optimizer = torch.optim.SGD(copied.copy.parameters(), lr=1e-7)
    copied(torch.ones(2, 8).bfloat16()).sum().backward()
    optimizer.step()
    assert not torch.equal(copied.copy.weight, start)
    assert torch.equal(linear.weight, before)


def test_its_weight_is_the_one_that_computes():
    copied = TrainedCopy(nn.Linear(8, 4, bias=False).bfloat16())
    nn.init.ones_(copied.copy.weight)
    assert bool((copied.weight == 1).all())
    assert copied.weight.dtype == torch.bfloat16
    copied.enabled = False
    assert torch.equal(copied.weight, copied.base.weight)
    x = torch.randn(2, 8).bfloat16()
    assert torch.equal(copied(x), copied.base(x))


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_head_embedding_and_norm_of_a_model_train_and_come_off_again(load, logits, train_a_little, model_type):
    base = load(model_type)
    before = logits(base.model)
    names = (
        ["embed_in", "final_layer_norm", "lm_head"] if model_type == "gpt_neox" else ["embed_tokens", "norm", "lm_head"]
    )
    adapters = attach(base.model, LoraConfig(r=2, modules_to_save=names))
    assert len(adapters.copies) == 3
    assert torch.equal(logits(base.model), before)
    base.model(torch.arange(3, 20)[None]).logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in adapters.parameters().items() if "lora" not in n)
    train_a_little(adapters)
    assert not torch.allclose(logits(base.model), before, atol=1e-3)
    with adapters.off():
        assert torch.equal(logits(base.model), before)
    adapters.detach()
    assert torch.equal(logits(base.model), before)
