"""config.json: what cannot be used is refused by name, and no code of the repository runs."""

from __future__ import annotations

import json

import pytest

from topcoat.errors import TopcoatError
from topcoat.model.config_json import read_config
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny


def edit(folder, **fields):
    save_tiny(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


MARKER = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def test_code_in_the_repository_is_not_run(tmp_path):
    edit(
        tmp_path,
        model_type="mystery",
        auto_map={"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.M"},
    )
    (tmp_path / "modeling_x.py").write_text(MARKER)
    with pytest.raises(TopcoatError, match=r"needs its own code \(modeling_x\.py\); it is not run"):
        load_model(ModelSettings(path=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_a_native_architecture_loads_and_its_auto_map_is_not_run(tmp_path):
    edit(tmp_path, auto_map={"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.M"})
    (tmp_path / "modeling_x.py").write_text(MARKER)
    base = load_model(ModelSettings(path=str(tmp_path), device="cpu"))
    assert type(base.model).__module__.startswith("transformers.")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mystery"}, "transformers has no architecture 'mystery'"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "t5"}, "t5 is not a causal language model"),
        ({"quantization_config": {"quant_method": "aqlm"}}, r"quantized by another tool \(aqlm\)"),
        ({"vision_config": {}}, "is a multimodal model"),
        ({"hidden_size": "many"}, "the model config is not valid"),
    ],
)
def test_an_unusable_config_is_named(tmp_path, fields, message):
    with pytest.raises(TopcoatError, match=message) as caught:
        read_config(edit(tmp_path, **fields))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("layers", [10_001, 10**30, 1e300])
@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_a_number_of_layers_that_would_fill_the_memory_is_refused(tmp_path, kind, layers):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "num_hidden_layers": layers}))
    with pytest.raises(TopcoatError, match="num_hidden_layers is over 10,000: no model has as many"):
        read_config(tmp_path)


@pytest.mark.parametrize("auto_map", [0.5, "x", ["a"]])
def test_an_auto_map_that_is_no_object_is_ignored(tmp_path, auto_map):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "y" * 500, "auto_map": auto_map}))
    with pytest.raises(TopcoatError, match=f"transformers has no architecture '{'y' * 60}'"):
        read_config(tmp_path)


def test_what_a_class_cannot_set_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlnet", "max_position_embeddings": 10}))
    with pytest.raises(TopcoatError, match="the model config is not valid"):
        read_config(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "not a JSON object")])
def test_a_config_that_is_no_json_object_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TopcoatError, match=message):
        read_config(tmp_path)


def test_an_adapter_directory_is_not_a_model(tmp_path):
    with pytest.raises(TopcoatError, match=r"there is no config\.json here"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(TopcoatError, match="this is an adapter, not a model"):
        read_config(tmp_path)
