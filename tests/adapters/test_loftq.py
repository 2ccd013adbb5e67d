"""LoftQ: the error it repairs, and that it stays with the number format it repairs."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.loftq import loftq
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.originals import Originals
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import IntConfig, Nf4Config, StoredConfig

CONFIG = LoraConfig(r=8, lora_alpha=24, init_lora_weights="loftq")


def ratio(W: torch.Tensor, scale: float, r: int = 16) -> float:
    """|W - deq(Q) - s B A| / |W - deq(Q)|."""
    linear = FrozenLinear.from_dense(W, None, Nf4Config(), torch.float32)
    error = W - linear.dense_weight(torch.float32)
    A, B = loftq(W, linear, r, scale)
    return float((error - scale * B @ A).norm() / error.norm())


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
def test_the_error_left_is_that_of_the_best_rank_r_repair_at_every_scale(scale):
    W = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert ratio(W, scale) == pytest.approx(0.942, abs=0.004)


def test_a_low_rank_part_of_the_weight_changes_little_after_one_step():
    generator = torch.Generator().manual_seed(1)
    planted = torch.randn(512, 8, generator=generator) @ torch.randn(8, 512, generator=generator) * 2
    W = torch.randn(512, 512, generator=generator) + planted
    assert 0.9 < ratio(W, 1.0) < 0.96


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_the_start_is_nearer_to_the_unrounded_model_and_the_base_is_untouched(load, logits, format):
    base, exact = load(format=format), logits(load().model)
    before = logits(base.model)
    adapters = attach(base.model, CONFIG, originals=Originals(base))
    assert float((logits(base.model) - exact).norm()) < 0.95 * float((before - exact).norm())
    with adapters.off():
        assert torch.equal(logits(base.model), before)
    truth = load().model.get_submodule("model.layers.1.mlp.down_proj").dense_weight(torch.float32)
    layer = adapters.layers["model.layers.1.mlp.down_proj"]
    left = (truth - layer.merged_weight()).norm() / (truth - layer.base.dense_weight(torch.float32)).norm()
    assert float(left) < 0.93


def test_it_is_a_lora_for_this_format_and_no_other(load, logits, train_a_little, tmp_path):
    base = load(format="nf4")
    adapters = attach(base.model, CONFIG, originals=Originals(base))
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny", base.identity.model_dump())
    again = load(format="nf4")
    loaded = load_adapter(again.model, tmp_path, again.identity.model_dump())
    assert torch.equal(logits(again.model), logits(base.model))
    second = tmp_path / "second"
    second.mkdir()
    save_adapter(loaded, second, "tiny", base.identity.model_dump())
    assert (second / "topcoat.json").read_bytes() == (tmp_path / "topcoat.json").read_bytes()
    for other in ("fp32", "int8"):
        elsewhere = load(format=other)
        modules = [id(module) for module in elsewhere.model.modules()]
        with pytest.raises(Refused) as caught:
            load_adapter(elsewhere.model, tmp_path, elsewhere.identity.model_dump())
        text = str(caught.value)
        assert "the adapter repairs the rounding of nf4 block_size=64 double_quant=True, and model.layers.0" in text
        assert f"is stored as {other}" in text
        assert "load it on the base in the format it was trained on" in text
        assert [id(module) for module in elsewhere.model.modules()] == modules


def test_peft_computes_it_on_the_rounded_weights(load, logits, from_transformers, train_a_little, tmp_path):
    peft = pytest.importorskip("peft")
    base = load(format="nf4")
    adapters = attach(base.model, CONFIG, originals=Originals(base))
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    plain = from_transformers()
    with torch.no_grad():
        for path, layer in adapters.layers.items():
            plain.get_submodule(path).weight.copy_(layer.base.dense_weight(torch.float32))
    assert_close(logits(peft.PeftModel.from_pretrained(plain, tmp_path)), logits(base.model), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_not_rounded_has_nothing_to_repair(load):
    base = load()
    with pytest.raises(TopcoatError) as caught:
        attach(base.model, CONFIG, originals=Originals(base))
    assert "loftq repairs rounded weights, and model.layers.0.self_attn.q_proj is stored as fp32" in str(caught.value)
    assert "write model.quantization: {format: nf4}" in str(caught.value)


def test_a_checkpoint_that_was_rounded_on_disk_has_nothing_to_repair_either(folder_of, tmp_path):
    quantize_checkpoint(DirectorySource(folder_of()), tmp_path / "q", IntConfig(), "fp32")
    settings = ModelSettings(path=str(tmp_path / "q"), quantization=StoredConfig(), compute_dtype="fp32", device="cpu")
    base = load_model(settings)
    with pytest.raises(TopcoatError) as caught:
        attach(base.model, CONFIG, originals=Originals(base))
    text = str(caught.value)
    assert "a weight stored as int4" in text
    assert "is just as the checkpoint has it, rounded there already" in text
    assert "give the checkpoint as it was before it was quantized" in text


def test_without_the_unrounded_weights_it_is_refused(load):
    with pytest.raises(TopcoatError) as caught:
        attach(load(format="nf4").model, CONFIG)
    assert "loftq needs the weights as they were before rounding" in str(caught.value)
    assert "pass attach(..., originals=Originals(base))" in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox", "phi3"])
def test_originals_are_the_checkpoints_own_weights(load, model_type):
    base, exact = load(model_type, format="nf4"), load(model_type)
    originals = Originals(base)
    for path, module in exact.model.named_modules():
        if isinstance(module, FrozenLinear):
            assert torch.equal(originals(path), module.dense_weight(torch.float32))
    with pytest.raises(TopcoatError, match=r"the checkpoint has no weight of model\.nowhere"):
        originals("model.nowhere")
