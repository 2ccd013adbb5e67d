"""Tiny models are seeded, true to their family, and saved complete."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoTokenizer

from topcoat.model.families import FAMILIES, attention_softcap, blocks_of, family_of, logit_softcap
from topcoat.model.tiny import TINY_TYPES, save_tiny, tiny_config, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_the_same_seed_gives_the_same_model(model_type):
    one, two, other = tiny_model(model_type, 3), tiny_model(model_type, 3), tiny_model(model_type, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_building_a_model_draws_no_global_random_numbers():
    before = torch.random.get_rng_state()
    tiny_model("llama")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_tokenizer_is_the_same_in_every_process():
    code = "from topcoat.model import identity, tiny; print(identity.hash_tokenizer(tiny.tiny_tokenizer()))"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


@pytest.mark.parametrize("text", ["Hello, world", "Où est 12345?\n\n  def f(x):\t'it's'", "日本語 🙂", ""])
def test_every_text_round_trips(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert max(tokenizer.get_vocab().values()) < 512


def test_a_chat_renders_as_chatml():
    messages = [{"role": "user", "content": "Hi"}]
    text = tiny_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_a_saved_model_is_complete_and_quick(tmp_path, model_type):
    tiny_tokenizer()
    start = time.process_time()
    save_tiny(tmp_path, model_type)
    assert time.process_time() - start < 1
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}
    text = "What is 1234?<|im_end|>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tiny_tokenizer()(text).input_ids


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "opt"])
def test_the_family_knows_where_things_are(model_type):
    model = tiny_model(model_type, layers=3)
    family = family_of(model)
    assert len(blocks_of(model)) == 3
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert "norm" in type(model.get_submodule(family.norm)).__name__.lower()
    hidden = model.get_submodule(family.decoder)(torch.arange(4)[None]).last_hidden_state
    assert hidden.shape == (1, 4, 64)
    if model_type in FAMILIES:
        block = blocks_of(model)[0]
        assert block.get_submodule(family.attention) is not None
        assert block.get_submodule(family.mlp) is not None


def test_the_soft_caps_are_those_of_the_config():
    assert (attention_softcap(tiny_config("gemma2")), logit_softcap(tiny_config("gemma2"))) == (50.0, 30.0)
    assert attention_softcap(tiny_config("llama")) is logit_softcap(tiny_config("llama")) is None
