"""The header of a safetensors file is believed in nothing: lengths, names, offsets, sizes."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from topcoat.errors import TopcoatError
from topcoat.model.safetensors_source import DirectorySource, read_tensors
from topcoat.model.tiny import save_tiny, tiny_model


def written(folder: Path, header, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


CASES = {
    "the copy is incomplete": lambda t: _raw(t, b"abc"),
    "expected 1,008 bytes, found 10": lambda t: _raw(t, (1000).to_bytes(8, "little") + b"{}"),
    "more than the format's": lambda t: _raw(t, (1 << 62).to_bytes(8, "little") + b"{}"),
    "the header is not JSON": lambda t: written(t, b"{nonsense"),
    "the header is not a JSON object": lambda t: written(t, b"[1]"),
    "the key 'a' stands twice": lambda t: written(
        t,
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        b"x",
    ),
    "tensor b overlaps another tensor": lambda t: written(
        t, {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)
    ),
    "leaves unused bytes before it": lambda t: written(t, {"a": entry([1], 4, 8)}, bytes(8)),
    "unknown dtype 'F128'": lambda t: written(t, {"a": entry([1], 0, 16, "F128")}, bytes(16)),
    "expected 40 bytes, found 8": lambda t: written(t, {"a": entry([10], 0, 8)}, bytes(8)),
    "sizes that are not whole numbers": lambda t: written(t, {"a": entry([-1], 0, -4)}, bytes(8)),
    "header entry of tensor a is incomplete": lambda t: written(t, {"a": {"dtype": "F32"}}, bytes(8)),
    "bytes after the last tensor": lambda t: written(t, {"a": entry([1], 0, 4)}, bytes(9)),
}


def _raw(folder: Path, data: bytes) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("message", CASES)
def test_a_lying_header_is_named(tmp_path, message):
    file = CASES[message](tmp_path)
    with pytest.raises(TopcoatError) as caught:
        read_tensors(file)
    assert message in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_header_above_the_formats_cap_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as opened:
        opened.write((100_000_001).to_bytes(8, "little"))
        opened.truncate(200_000_000)  # sparse: takes no room
    with pytest.raises(TopcoatError, match="claims 100,000,001 bytes, more than the format's 100,000,000"):
        read_tensors(file)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_header_is_an_error_or_stays_inside_the_file(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.ones(5, dtype=torch.bfloat16)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 150))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(TopcoatError):
        assert all(tensor.offset + tensor.n_bytes <= len(content) for tensor in read_tensors(file))


def test_tensors_read_as_the_library_reads_them(tmp_path):
    file = tmp_path / "model.safetensors"
    tensors = {
        f"t{i}": torch.randn(i, 3).to(d) for i, d in enumerate((torch.float32, torch.bfloat16, torch.float16), 1)
    }
    save_file({**tensors, "empty": torch.ones(0, 4), "scalar": torch.tensor(2.5)}, file)
    theirs = load_file(file)
    ours = {tensor.name: tensor.read() for tensor in read_tensors(file)}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error_and_not_a_crash(tmp_path):
    save_tiny(tmp_path)
    tensor = DirectorySource(tmp_path).tensors()[-1]
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(TopcoatError, match=r"model\.safetensors: expected [\d,]+ bytes, found 2,000"):
        tensor.read()


def sharded(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    return folder


def test_a_missing_shard_is_named(tmp_path):
    shard = sorted(sharded(tmp_path).glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(TopcoatError, match=f"missing 1 of .* weight files: {shard.name}"):
        DirectorySource(tmp_path).tensors()


def test_a_missing_shard_is_named_without_an_index_too(tmp_path):
    shards = sorted(sharded(tmp_path).glob("*.safetensors"))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(DirectorySource(tmp_path).tensors()) == 21
    shards[-1].unlink()
    with pytest.raises(TopcoatError, match=shards[-1].name):
        DirectorySource(tmp_path).tensors()


def test_shards_of_another_checkpoint_are_noticed(tmp_path):
    shards = sorted(sharded(tmp_path).glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    with pytest.raises(TopcoatError, match="is in two files"):
        DirectorySource(tmp_path).tensors()
    save_file({"other": torch.ones(2)}, shards[1])
    with pytest.raises(TopcoatError, match="but it is not"):
        DirectorySource(tmp_path).tensors()


def test_an_index_cannot_point_outside_its_directory(tmp_path):
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(TopcoatError, match="the index names no usable shard"):
        DirectorySource(tmp_path).tensors()


def test_a_pickle_is_never_opened(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(TopcoatError, match=r"the weights are a pickle \(pytorch_model\.bin\).*it is not opened"):
        DirectorySource(tmp_path).tensors()


def test_a_directory_without_weights_says_so(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TopcoatError, match="there are no weights here"):
        DirectorySource(tmp_path).tensors()


def test_the_licence_is_read_from_the_model_card(tmp_path):
    save_tiny(tmp_path)
    assert DirectorySource(tmp_path).license.name is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / "LICENSE").write_text("Apache")
    source = DirectorySource(tmp_path)
    assert source.license.name == "apache-2.0"
    assert {file.name for file in source.files_to_copy()} >= {"tokenizer.json", "generation_config.json", "LICENSE"}
