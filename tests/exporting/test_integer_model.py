"""A QA-LoRA merged into its integers: the same codes, the same logits, and a directory that loads as it was trained."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import QaloraConfig
from topcoat.exporting.integers import integers_of, merged_integers
from topcoat.exporting.merge import merge_model
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GgufConfig, IntConfig, StoredConfig

FORMATS = {
    "int4": IntConfig(),
    "int3 in 64": IntConfig(format="int3", group_size=64),
    "int2 in 16": IntConfig(format="int2", group_size=16),
    "float32 scales": IntConfig(scale_dtype="fp32"),
    "gguf blocks": GgufConfig(type="Q4_1"),
    "mixed": IntConfig(overrides={"*.o_proj": "nf4", "0.mlp.up_proj": "bf16"}),
}


@pytest.mark.parametrize("stored", FORMATS.values(), ids=FORMATS.keys())
def test_the_merged_model_is_the_integers_with_other_lowest_values(logits, prompts, tmp_path, stored):
    folder = save_tiny(tmp_path / "model", "llama")
    settings = ModelSettings(path=str(folder), quantization=stored, compute_dtype="fp32", device="cpu")
    base = load_model(settings)
    group = stored.group_size if isinstance(stored, IntConfig) else 32
    config = QaloraConfig(r=1, qalora_group_size=group, exclude_modules=["o_proj", "up_proj"])
    adapters = attach(base.model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    expected = logits(base.model)
    said: list[str] = []
    proof = merge_model(base, adapters, tmp_path / "merged", prompts, said.append)
    assert proof.relative_error < 1e-5
    assert said[0] == "writing the integers as they were trained"
    facts = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert facts["quantization_config"]["quant_method"] == "topcoat"

    loaded = ModelSettings(
        path=str(tmp_path / "merged"), quantization=StoredConfig(), compute_dtype="fp32", device="cpu"
    )
    merged = load_model(loaded).model
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    for path, layer in adapters.layers.items():
        linear = merged.get_submodule(path)
        assert isinstance(linear, FrozenLinear)
        own, found, want = integers_of(layer.base), integers_of(linear), merged_integers(layer)
        assert torch.equal(found.codes, own.codes)
        assert torch.equal(found.scale, own.scale)
        assert torch.equal(found.low, want.low)
        assert not torch.equal(found.low, own.low)
    plain = load_model(loaded.model_copy(update={"quantization": None})).model  # as plain numbers, for what needs them
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)


def test_the_codes_take_as_little_room_as_before(prompts, tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    base = load_model(ModelSettings(path=str(folder), quantization=IntConfig(), compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, QaloraConfig(r=2))
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.1)
    merge_model(base, adapters, tmp_path / "merged", prompts, lambda text: None)
    tensors = safetensors.torch.load((tmp_path / "merged" / "model.safetensors").read_bytes())
    path = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(tensors[f"{path}.codes"], adapters.layers[path.removesuffix(".weight")].base.get_buffer("codes"))
    assert tensors[f"{path}.low"].dtype == tensors[f"{path}.scale"].dtype == torch.float32
    assert path not in tensors
