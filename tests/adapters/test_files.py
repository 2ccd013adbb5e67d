"""The adapter directory: strict both ways, and every refusal says which tensor, how many, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from topcoat.adapters import files
from topcoat.adapters.attach import attach
from topcoat.adapters.files import adapter_tensors, load_adapter, read_peft_config, save_adapter
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import Refused, TopcoatError

IDENTITY = {"base": "a" * 64, "tokenizer": "b" * 64, "chat_template": "c" * 64, "source": "models/one"}


@pytest.fixture
def saved(load, train_a_little, tmp_path) -> Path:
    """A trained adapter on disk."""
    adapters = attach(load().model, LoraConfig(r=3, lora_alpha=6))
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "models/one", IDENTITY)
    return tmp_path


def change(folder: Path, edit) -> None:
    """Rewrite the weights file after `edit` has changed the tensors."""
    tensors = safetensors.torch.load((folder / files.WEIGHTS).read_bytes())
    edit(tensors)
    (folder / files.WEIGHTS).write_bytes(safetensors.torch.save(tensors))


def change_config(folder: Path, **values) -> None:
    path = folder / files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(load, folder: Path, kind: type[TopcoatError] = TopcoatError, identity=None) -> str:
    """The message of loading, which must leave the model as it was."""
    model = load().model
    modules = [id(module) for module in model.modules()]
    with pytest.raises(kind) as caught:
        load_adapter(model, folder, identity)
    assert [id(module) for module in model.modules()] == modules
    return str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=6),
        LoraConfig(r=2, lora_alpha=2.5, use_rslora=True, lora_dropout=0.1, target_modules=["q_proj", "mlp.up_proj"]),
        LoraConfig(r=2, target_modules=[r".*layers\.1\..*"], modules_to_save=["lm_head", "norm"]),
        LoraConfig(r=2, layers_to_transform=[1], exclude_modules=["mlp.up_proj"], trainable_token_indices=[9, 3]),
        LoraConfig(r=2, rank_pattern={"q_proj": 4, "0.mlp.up_proj": 1}, alpha_pattern={"v_proj": 2.5}),
    ],
    ids=["all", "rslora", "some", "layers", "patterns"],
)
def test_saved_loaded_and_saved_again_is_the_same_bytes(load, logits, train_a_little, tmp_path, config):
    model = load().model
    adapters = attach(model, config)
    train_a_little(adapters)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    save_adapter(adapters, first, "models/one", IDENTITY)
    again = load().model
    loaded = load_adapter(again, first, IDENTITY)
    assert torch.equal(logits(again), logits(model))
    save_adapter(loaded, second, "models/one", IDENTITY)
    assert {file.name for file in first.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "topcoat.json",
    }
    for file in first.iterdir():
        assert (second / file.name).read_bytes() == file.read_bytes()


def test_the_names_and_dtypes_are_pefts(saved):
    tensors = safetensors.torch.load((saved / files.WEIGHTS).read_bytes())
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (64, 3)
    config = json.loads((saved / files.CONFIG).read_text())
    assert config["lora_alpha"] == 6
    assert type(config["lora_alpha"]) is int
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_a_loaded_adapter_trains_on(load, saved):
    model = load().model
    adapters = load_adapter(model, saved)
    model(torch.arange(3, 30)[None]).logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapters.parameters().values())


def test_what_is_on_disk_after_saving_is_compared_with_memory(load, tmp_path, monkeypatch):
    adapters = attach(load().model, LoraConfig(r=2))
    real = safetensors.torch.save

    def forgetful(tensors, metadata=None):
        return real({name: t for name, t in tensors.items() if "q_proj.lora_B" not in name}, metadata)

    monkeypatch.setattr(safetensors.torch, "save", forgetful)
    with pytest.raises(Refused) as caught:
        save_adapter(adapters, tmp_path, "models/one")
    text = str(caught.value)
    assert "the saved adapter has 26 of 28 tensors as they are in memory" in text
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight" in text
    assert str(tmp_path / files.WEIGHTS) in text


def test_a_flipped_value_on_disk_is_found_too(load, tmp_path, monkeypatch, train_a_little):
    adapters = attach(load().model, LoraConfig(r=2))
    train_a_little(adapters)
    real = files.write_file

    def careless(path, data):
        real(path, data[:-1] + bytes([data[-1] ^ 1]) if path.name == files.WEIGHTS else data)

    monkeypatch.setattr(files, "write_file", careless)
    with pytest.raises(Refused, match="the saved adapter has 28 of 28 tensors"):
        save_adapter(adapters, tmp_path, "models/one")


def test_a_missing_tensor_is_refused(load, saved):
    change(saved, lambda t: t.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"))
    text = refusal(load, saved, Refused)
    assert "1 tensors this model expects are absent, first base_model.model.model.layers.1.mlp.up_proj.lora_B" in text
    assert str(saved / files.WEIGHTS) in text


def test_a_tensor_too_many_is_refused(load, saved):
    change(saved, lambda t: t.update({"base_model.model.model.layers.9.mlp.up_proj.lora_B.weight": torch.zeros(2)}))
    assert "1 tensors in the adapter match nothing in this model, first base_model.model.model.layers.9" in refusal(
        load, saved, Refused
    )


def test_a_renamed_tensor_is_both_said_at_once(load, saved):
    def rename(tensors):
        tensors["base_model.model.layers.0.mlp.up_proj.lora_A.weight"] = tensors.pop(
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        )

    change(saved, rename)
    text = refusal(load, saved, Refused)
    assert "match nothing in this model" in text
    assert "are absent" in text


def test_another_shape_is_refused_with_both_shapes(load, saved):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    change(saved, lambda t: t.update({name: torch.zeros(3, 32)}))
    assert f"1 tensors have another shape, first {name}: (3, 32) in the file, (3, 64) here" in refusal(
        load, saved, Refused
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(load, saved, value):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    change(saved, lambda t: t[name].view(-1)[7:8].fill_(value))
    assert f"1 tensors hold NaN or infinity, first {name}" in refusal(load, saved, Refused)


def test_a_truncated_file_says_how_many_bytes_there_are(load, saved):
    path = saved / files.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    text = refusal(load, saved)
    assert "adapter_model.safetensors is no complete safetensors file" in text
    assert f"({path.stat().st_size:,} bytes found)" in text
    assert "copy it again" in text


def test_a_directory_without_the_weights_says_that_a_bin_file_is_not_read(load, saved):
    (saved / files.WEIGHTS).rename(saved / "adapter_model.bin")
    text = refusal(load, saved)
    assert "has no adapter_model.safetensors" in text
    assert "a .bin file is a pickle and is not read" in text


def test_a_directory_that_is_no_adapter_is_said_to_be_none(load, tmp_path):
    assert "is no adapter: it has no adapter_config.json" in refusal(load, tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[1]", "is not a JSON object")])
@pytest.mark.parametrize("name", [files.CONFIG, files.IDENTITY])
def test_a_broken_json_file_is_named(load, saved, text, message, name):
    (saved / name).write_text(text)
    found = refusal(load, saved, identity=IDENTITY)
    assert f"{name} {message}" in found
    assert str(saved / name) in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_bias": True}, "lora_bias is True, which this version does not compute"),
        ({"bias": "all"}, "bias is 'all', which this version does not compute"),
        ({"layers_pattern": "towers"}, "layers_pattern is 'towers', which this version does not compute"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]], which this version does not compute"),
        ({"layers_to_transform": [-1]}, "layers_to_transform.0 is -1: Input should be greater than or equal to 0"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which this version does not compute"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which this version does not compute"),
        ({"peft_type": "OFT"}, "peft_type is 'OFT'; this version reads LORA"),
        ({"r": None}, "adapter_config.json lacks 'r'"),
        ({"r": 0}, "r is 0: Input should be greater than or equal to 1"),
        ({"target_modules": None}, "adapter_config.json lacks 'target_modules'"),
    ],
    ids=str,
)
def test_what_this_version_does_not_compute_is_refused(load, saved, values, message):
    change_config(saved, **values)
    text = refusal(load, saved)
    assert message in text
    assert str(saved / files.CONFIG) in text


def test_everything_wrong_with_a_config_is_said_at_once(saved):
    change_config(saved, lora_bias=True, bias="all", lora_alpha=None)
    with pytest.raises(TopcoatError) as caught:
        read_peft_config(saved)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("key", "noun"), [("base", "base model"), ("tokenizer", "tokenizer"), ("chat_template", "chat template")]
)
def test_an_adapter_of_another_base_is_refused_naming_both(load, saved, key, noun):
    other = IDENTITY | {key: "d" * 64, "source": "models/two"}
    text = refusal(load, saved, Refused, other)
    theirs = IDENTITY[key][:12]
    assert (
        f"the adapter was trained with another {noun}: models/one ({theirs}), this is models/two ({'d' * 12})" in text
    )


def test_the_same_base_under_another_name_is_accepted(load, saved):
    load_adapter(load().model, saved, IDENTITY | {"source": "elsewhere"})


def test_the_right_shapes_on_another_base_are_refused_by_the_real_fingerprint(load, tmp_path):
    one, two = load(seed=0), load(seed=1)
    save_adapter(attach(one.model, LoraConfig(r=2)), tmp_path, "one", one.identity.model_dump())
    with pytest.raises(Refused, match="another base model"):
        load_adapter(two.model, tmp_path, two.identity.model_dump())
    assert len(load_adapter(load(seed=0).model, tmp_path, one.identity.model_dump()).layers) == 14


def test_half_precision_files_become_float32_masters(load, saved):
    change(saved, lambda t: t.update({name: value.bfloat16() for name, value in t.items()}))
    adapters = load_adapter(load().model, saved)
    assert {p.dtype for p in adapters.parameters().values()} == {torch.float32}


def test_what_goes_into_the_file_is_sorted_and_off_the_graph(load):
    tensors = adapter_tensors(attach(load().model, LoraConfig(r=2)))
    assert list(tensors) == sorted(tensors)
    assert not any(tensor.requires_grad for tensor in tensors.values())
