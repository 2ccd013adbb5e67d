"""Identity names what was loaded: one flipped bit changes it, another layout of the same files does not."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from topcoat.model.identity import Identity, hash_config, hash_tokenizer
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny, tiny_tokenizer


def differing(one: Identity, other: Identity) -> list[str]:
    """The parts that differ, the path as it was typed aside."""
    return [part for part in Identity.model_fields if part != "source" and getattr(one, part) != getattr(other, part)]


def identity(folder, **settings) -> Identity:
    return load_model(ModelSettings(path=str(folder), device="cpu", **settings)).identity


def test_the_same_weights_have_the_same_identity_however_they_are_used(tmp_path):
    save_tiny(tmp_path)
    one = identity(tmp_path, compute_dtype="fp32")
    assert one == identity(tmp_path, compute_dtype="bf16", quantization={"format": "nf4"})


def test_one_flipped_bit_is_another_base(tmp_path):
    save_tiny(tmp_path)
    before = identity(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(tensors, tmp_path / "model.safetensors")
    after = identity(tmp_path)
    assert differing(before, after) == ["base"]


def test_other_seeds_other_types_and_other_templates_differ(tmp_path):
    first = identity(save_tiny(tmp_path / "a"))
    assert identity(save_tiny(tmp_path / "b", seed=1)).base != first.base
    assert identity(save_tiny(tmp_path / "c", "mistral")).architecture == "MistralForCausalLM"
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    other = identity(tmp_path / "a", chat_template=str(template))
    assert differing(first, other) == ["chat_template"]


def test_the_config_hash_ignores_who_wrote_the_file():
    facts = {"hidden_size": 64, "rope_theta": 1e4}
    assert hash_config(facts | {"transformers_version": "5.0", "dtype": "float32"}) == hash_config(facts)
    assert hash_config(facts | {"hidden_size": 65}) != hash_config(facts)


def test_the_tokenizer_hash_sees_tokens_rules_and_specials():
    plain = hash_tokenizer(tiny_tokenizer())
    assert plain == hash_tokenizer(tiny_tokenizer())
    used = tiny_tokenizer()
    used(["a", "long text"], padding=True, truncation=True, max_length=4)
    assert hash_tokenizer(used) == plain
    added = tiny_tokenizer()
    added.add_tokens(["<tool>"])
    respecial = tiny_tokenizer()
    respecial.eos_token = "<|endoftext|>"
    assert len({plain, hash_tokenizer(added), hash_tokenizer(respecial)}) == 3


def test_an_identity_survives_json():
    one = Identity(base="a" * 64, config="b", tokenizer="c", chat_template="d", architecture="E", source="f")
    assert Identity.model_validate(json.loads(one.model_dump_json())) == one
