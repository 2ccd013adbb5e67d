"""The skeleton costs nothing, and what it computes is what transformers computes."""

from __future__ import annotations

import resource

import pytest
import torch
from transformers import AutoConfig

from topcoat.errors import TopcoatError
from topcoat.model.skeleton import build_skeleton, check_sizes
from topcoat.model.tiny import TINY_TYPES, tiny_config, tiny_model


def test_a_skeleton_of_seventy_billion_weights_takes_no_memory():
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=8, vocab_size=128256
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build_skeleton(config, torch.bfloat16, "sdpa")
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_buffers_are_real_and_right(model_type):
    expected = dict(tiny_model(model_type).named_buffers())
    found = dict(build_skeleton(tiny_config(model_type), torch.bfloat16, "eager").named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in expected)


@pytest.mark.parametrize(
    ("model_type", "message"), [("gpt2", "Conv1D modules"), ("mixtral", "fused expert weights"), ("mamba", "")]
)
def test_an_architecture_that_cannot_be_frozen_is_refused(model_type, message):
    config = AutoConfig.for_model(
        model_type, vocab_size=64, num_hidden_layers=2, hidden_size=32, n_embd=32, n_layer=2, n_head=4
    )
    if message:
        with pytest.raises(TopcoatError, match=message):
            build_skeleton(config, torch.float32, "eager")
    else:
        build_skeleton(config, torch.float32, "eager")


def test_a_config_transformers_cannot_build_is_named():
    with pytest.raises(TopcoatError, match="transformers cannot build this llama"):
        build_skeleton(tiny_config("llama", hidden_act="nonsense"), torch.float32, "eager")


@pytest.mark.parametrize("field", ["layers", "hidden_size", "head_dim"])
def test_a_config_far_larger_than_its_checkpoint_is_refused_before_it_is_built(field):
    with pytest.raises(TopcoatError, match=r"config says \w+ = 1000000, but the checkpoint has"):
        check_sizes(tiny_config("llama", **{field: 1_000_000}), [(512, 64)] * 20, "x")
