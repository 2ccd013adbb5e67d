"""A model's shapes from its files, whatever they are, without torch and without the network."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from gguf import GGUFWriter

from topcoat.errors import TopcoatError
from topcoat.model.tiny import TINY_TYPES, save_tiny, tiny_model
from topcoat.planning.data_size import data_size
from topcoat.planning.model_files import find_architecture


@pytest.mark.parametrize("name", TINY_TYPES)
def test_a_directory_is_read_by_its_config(name, tmp_path):
    folder = save_tiny(tmp_path / name, name)
    for file in folder.glob("*.safetensors"):
        file.unlink()  # weights are not looked at
    assert find_architecture(str(folder)).parameters == sum(p.numel() for p in tiny_model(name).parameters())


def test_the_hubs_cache_is_read_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_model("qwen3").config.to_dict()))
    found = find_architecture("some/model")
    assert (found.name, found.kind) == ("some/model", "qwen3")
    with pytest.raises(TopcoatError, match="not among the models known by name"):
        find_architecture("some/other")


def test_no_torch_is_imported(tmp_path):
    code = "import sys; from topcoat.planning.model_files import find_architecture as f; import topcoat.runs.planning; "
    code += "f('llama-3.1-8b'); import topcoat.model.gguf_header; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": "{}"}, "this is an adapter, not a model"),
        ({"x.gguf": ""}, "name the file:"),
        ({}, "there is no config.json here"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": "{}"}, "the config does not say num_hidden_layers"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TopcoatError) as caught:
        find_architecture(str(tmp_path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "the file has no token_embd.weight"),
        (
            {"token_embd.weight": (64,)},
            "token_embd.weight has the shape (64,), and the header says embedding_length 64",
        ),
        ({"token_embd.weight": (256, 32)}, "token_embd.weight has the shape (256, 32)"),
        (
            {"token_embd.weight": (256, 64), "blk.0.attn_q.weight": (64, 64)},
            "the header says block_count 2, and the file has tensors of 1 blocks",
        ),
    ],
)
def test_a_gguf_whose_tensors_are_not_those_of_its_header_is_refused(tensors, said, tmp_path):
    written = GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    sizes = {"block_count": 2, "context_length": 512, "embedding_length": 64, "feed_forward_length": 128}
    for name, size in {**sizes, "attention.head_count": 4}.items():
        written.add_uint32(f"llama.{name}", size)
    for name, shape in tensors.items():
        written.add_tensor(name, np.zeros(shape, np.float16))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()
    with pytest.raises(TopcoatError) as caught:
        find_architecture(str(tmp_path / "m.gguf"))
    assert said in str(caught.value)


def test_rows_and_tokens_of_a_file_are_told_from_its_beginning(tmp_path):
    file = tmp_path / "rows.jsonl"
    line = json.dumps({"text": "x" * 400}) + "\n"
    file.write_text(line * 5000)
    size = data_size([str(file)])
    assert size is not None
    assert size.rows == pytest.approx(5000, rel=0.01)
    assert 80 < size.mean_tokens < 110
    assert data_size([str(file), str(tmp_path / "absent.jsonl")]) is None
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert data_size([str(tmp_path / "rows.csv")]) is None
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 20)
    assert data_size([str(tmp_path / "binary.jsonl")]) is None
    (tmp_path / "empty.jsonl").write_text("\n")
    assert data_size([str(tmp_path / "empty.jsonl")]) is None
