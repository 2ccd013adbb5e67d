"""Shards as transformers reads them, one in memory at a time."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from topcoat.exporting.shards import write_shards
from topcoat.model.tiny import save_tiny, tiny_model


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(4, 200))
def test_every_tensor_is_in_one_shard_and_no_shard_of_two_is_too_large(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.arange(n, dtype=torch.float32) + i for i, n in enumerate(sizes)}
    files = write_shards(tensors.items(), folder, limit)
    assert list(files) == list(tensors)
    found = {}
    for name in sorted(set(files.values())):
        held = safetensors.torch.load((folder / name).read_bytes())
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
        assert all(files[key] == name for key in held)
        found |= held
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    names = {path.name for path in folder.iterdir()}
    if len(set(files.values())) == 1:
        assert names == {"model.safetensors"}
    else:
        count = len(names) - 1
        assert names == {f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)} | {
            "model.safetensors.index.json"
        }
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == files
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_transformers_reads_the_shards(tmp_path, shard_bytes):
    save_tiny(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    model = tiny_model("llama")
    files = write_shards(((name, t) for name, t in model.state_dict().items()), tmp_path, shard_bytes)
    assert (len(set(files.values())) > 5) == (shard_bytes == 20_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_one_shard_is_held_in_memory_at_a_time(tmp_path):
    alive, most = 0, 0

    class Counted(torch.Tensor):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        nonlocal alive, most
        for i in range(20):
            alive += 1
            most = max(most, alive)
            yield f"t{i}", torch.zeros(25).as_subclass(Counted)

    write_shards(stream(), tmp_path, 300)  # three tensors of 100 bytes
    assert most <= 5


def test_views_are_written_as_what_they_show(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_shards({"rows": whole[1:], "turned": whole.T}.items(), tmp_path)
    held = safetensors.torch.load((tmp_path / "model.safetensors").read_bytes())
    assert torch.equal(held["rows"], whole[1:])
    assert torch.equal(held["turned"], whole.T)
