"""topcoat export: proved files for other programs, from a QA-LoRA on integers to GGUF, and everything it refuses."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from ruamel.yaml import YAML

from topcoat import export
from topcoat.exporting.choices import TARGETS, TYPES
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.settings import StoredConfig


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def integers(shelf, topcoat, tiny_recipe, tmp_path):
    """A copy of a finished run of a QA-LoRA on int4."""
    made = shelf / "qalora"
    if not made.exists():
        recipe = tiny_recipe(
            made, train={"max_steps": 4, "learning_rate": 3e-2}, evaluate={"every": 4, "metrics": ["perplexity"]}
        )
        recipe["model"] |= {"quantization": {"format": "int4"}}
        recipe["adapter"] = {"method": "qalora", "r": 2}
        (shelf / "qalora.yaml").write_text(json.dumps(recipe))
        done = topcoat("train", str(shelf / "qalora.yaml"))
        assert done.code == 0, done.err
    return Path(shutil.copytree(made, tmp_path / "qalora-run"))


def test_what_was_trained_merged_and_served_is_one(topcoat, integers):
    """The same codes in the run's base, the merged directory and the GGUF; logits equal but for the rounding of m."""
    merged = topcoat("merge", str(integers), "--json")
    assert merged.code == 0, merged.err
    assert merged.json["relative_error"] < 1e-5
    done = topcoat("export", str(integers), "--to", "gguf", "--json")
    assert done.code == 0, done.err
    assert done.json["exported"] == str(integers / "gguf")
    assert (done.json["type"], done.json["exact"], done.json["verified"]) == ("Q4_1", True, True)
    assert done.json["relative_error"] < 5e-3
    assert json.loads((integers / "results.json").read_text())["exports"]["gguf"]["type"] == "Q4_1"

    keywords = {"quantization": StoredConfig(), "compute_dtype": "fp32", "device": "cpu"}
    model = load_model(ModelSettings(path=str(integers / "merged"), **keywords)).model
    linear = model.get_submodule("model.layers.0.mlp.down_proj")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(integers / "gguf" / "model.gguf").tensors}
    blocks = torch.from_numpy(tensors["blk.0.ffn_down.weight"].data.copy()).reshape(64, -1, 20)
    codes = torch.cat((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), -1).flatten(1)
    packed = linear.get_buffer("codes")
    assert torch.equal(codes, torch.stack((packed & 15, packed >> 4), -1).flatten(1))


def test_the_adapter_alone_goes_to_llama_cpp_and_to_peft(topcoat, integers, tmp_path):
    done = topcoat("export", str(integers), "--to", "gguf-lora", "--type", "f16", "--output", str(tmp_path / "lora"))
    assert done.code == 0, done.err
    assert "exported to" in done.out
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "lora" / "adapter.gguf").tensors}
    assert "blk.1.attn_q.weight.lora_b" in names
    done = topcoat("export", str(integers), "--to", "peft", "--json")
    assert done.code == 0, done.err
    assert done.json["rank"] == 2
    stated = json.loads((integers / "peft" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"]) == (2, 2)


def test_python_exports_as_the_verb_does(integers, tmp_path):
    folder, done = export(integers, "gguf", tmp_path / "out", "f16")
    assert (folder, done.type, done.exact) == (tmp_path / "out", "F16", False)
    assert done.proof.holds


def test_a_fully_trained_run_is_exported_whole_and_has_no_adapter(topcoat, finished):
    run = finished("full")
    done = topcoat("export", str(run), "--to", "gguf", "--type", "F32", "--json")
    assert done.code == 0, done.err
    assert done.json["relative_error"] < 1e-5
    for target in ("gguf-lora", "peft"):
        done = topcoat("export", str(run), "--to", target)
        assert done.code == 2
        assert "trains the whole model: there is no adapter to export" in done.err
        assert "--to gguf" in done.err


@pytest.mark.parametrize(
    ("arguments", "said", "fix"),
    [
        (["--to", "onnx"], "'onnx' is nothing to export to", "gguf, gguf-lora, peft"),
        (["--to", "gguf", "--type", "q4_k_m"], "--type q4_k_m is none that --to gguf writes", "llama-quantize"),
        (["--to", "gguf-lora", "--type", "q4_0"], "--type q4_0 is none that --to gguf-lora writes", "f32, f16"),
        (["--to", "peft", "--type", "f16"], "--type f16 belongs to gguf and gguf-lora", "leave it out"),
        (["--to", "gguf", "--output", "model.gguf"], "model.gguf would be a folder", "name it model"),
    ],
)
def test_words_that_mean_nothing_are_said_before_a_model_is_loaded(topcoat, integers, arguments, said, fix):
    done = topcoat("export", str(integers), *arguments)
    assert done.code == 2
    assert said in done.err
    assert fix in done.err


def change_recipe(run: Path, **sections) -> None:
    """Put other sections into the recipe of a finished run."""
    yaml = YAML(typ="safe")
    recipe = yaml.load((run / "recipe.yaml").read_text()) | sections
    with (run / "recipe.yaml").open("w") as file:
        yaml.dump(recipe, file)


def test_a_folder_that_exists_is_left_alone(topcoat, integers):
    (integers / "gguf").mkdir()
    done = topcoat("export", str(integers), "--to", "gguf")
    assert done.code == 2
    assert "gguf exists already" in done.err
    assert not list((integers / "gguf").iterdir())


def test_a_folder_that_is_no_run(topcoat, tmp_path):
    done = topcoat("export", str(tmp_path), "--to", "gguf")
    assert done.code == 2
    assert "is no run folder: it has no recipe.yaml" in done.err


def test_an_adapter_that_changes_nothing(topcoat, integers):
    from safetensors.torch import load_file, save_file

    file = integers / "adapter" / "adapter_model.safetensors"
    tensors = {name: t * 0 if "lora_B" in name else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    done = topcoat("export", str(integers), "--to", "peft")
    assert done.code == 1
    assert "the adapter changes nothing: it is as it started" in done.err


def test_a_proof_that_fails_publishes_nothing(topcoat, integers, monkeypatch):
    monkeypatch.setattr("topcoat.exporting.gguf_model.EXACT", 1e-12)
    done = topcoat("export", str(integers), "--to", "gguf", "--json")
    assert done.code == 1
    assert "does not compute what it should: its logits are off by" in done.err
    assert done.json["ok"] is False
    assert not (integers / "gguf").exists()


def test_every_type_is_one_of_the_gguf_librarys():
    assert set(TYPES) == set(TARGETS)
    assert all(kind in gguf.GGMLQuantizationType.__members__ for kinds in TYPES.values() for kind in kinds)


@pytest.mark.parametrize(
    ("target", "adapter", "said"),
    [
        ("gguf", {"method": "prompt_tuning", "num_virtual_tokens": 2}, "prompt_tuning"),
        ("gguf-lora", {"method": "prompt_tuning", "num_virtual_tokens": 2}, "prompt_tuning"),
    ],
)
def test_virtual_tokens_are_no_weights_to_export(topcoat, integers, target, adapter, said):
    """Said by the recipe, before the base is loaded for nothing."""
    change_recipe(integers, adapter=adapter)
    done = topcoat("export", str(integers), "--to", target)
    assert done.code in (1, 2)
    assert said in done.err
    assert "loading the base" not in done.out


def test_a_head_of_labels_is_none_that_gguf_holds(topcoat, integers):
    change_recipe(integers, train={"objective": "classification", "max_steps": 4}, evaluate={})
    for target in ("gguf", "gguf-lora"):
        done = topcoat("export", str(integers), "--to", target)
        assert done.code == 2
        assert "a head of labels, and a GGUF holds a model that writes text" in done.err
        assert "topcoat merge" in done.err
