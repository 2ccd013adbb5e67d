"""How many numbers train: the formula r (in + out), and published models built from their configs on no device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig

LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def on_meta(config: dict) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**config))


@pytest.mark.parametrize(
    ("sizes", "r", "targets", "expected"),
    [
        (LLAMA_3_8B, 16, "all-linear", 41_943_040),
        (LLAMA_3_8B, 16, ["q_proj", "v_proj"], 6_815_744),
        (LLAMA_3_8B, 16, ATTENTION, 13_631_488),
        (LLAMA_3_8B, 16, MLP, 28_311_552),
        (SMOLLM2_135M, 16, "all-linear", 4_884_480),
        (SMOLLM2_135M, 4, "all-linear", 1_221_120),
        (SMOLLM2_135M, 64, "all-linear", 19_537_920),
        (SMOLLM2_135M, 16, ["q_proj", "v_proj"], 921_600),
    ],
)
def test_published_models_train_as_many_parameters_as_the_formula_says(sizes, r, targets, expected):
    model = on_meta(sizes)
    assert attach(model, LoraConfig(r=r, target_modules=targets)).count() == expected


def test_llama_3_8b_with_its_adapter_has_8_072_204_288_parameters():
    model = on_meta(LLAMA_3_8B)
    base = sum(p.numel() for p in model.parameters())
    assert base == 8_030_261_248
    assert base + attach(model, LoraConfig(r=16)).count() == 8_072_204_288


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "gpt_neox", "olmo2"])
def test_every_adapted_linear_adds_r_times_in_plus_out(load, model_type):
    adapters = attach(load(model_type).model, LoraConfig(r=3))
    sizes = [(layer.base.in_features, layer.base.out_features) for layer in adapters.layers.values()]
    assert adapters.count() == sum(3 * (i + o) for i, o in sizes)
    assert not any("lm_head" in path or "embed_out" in path for path in adapters.layers)
