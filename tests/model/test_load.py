"""A loaded base computes what transformers' own from_pretrained computes, frozen and with FrozenLinear inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from topcoat.errors import TopcoatError
from topcoat.model.families import FAMILIES, blocks_of
from topcoat.model.load import (
    Base,
    _has_native_bf16,
    load_model,
    resolve_attention,
    resolve_compute_dtype,
    resolve_device,
)
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import TINY_TYPES, save_tiny, tiny_config, tiny_model, tiny_tokenizer
from topcoat.quant.linear import FrozenLinear

IDS = torch.arange(3, 60)[None]


def load(path: Path, dtype: str = "fp32", **settings) -> Base:
    return load_model(ModelSettings(path=str(path), compute_dtype=dtype, device="cpu", **settings))


def reference(path: Path, attention: str = "eager") -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "opt"])
def test_the_logits_are_those_of_transformers(tmp_path, model_type):
    save_tiny(tmp_path, model_type)
    ours = load(tmp_path, attention="eager").model(IDS).logits
    assert_close(ours, reference(tmp_path)(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_the_input_gradient_is_that_of_transformers(tmp_path, model_type):
    save_tiny(tmp_path, model_type)
    gradients = []
    for model in (load(tmp_path, attention="eager").model, reference(tmp_path)):
        embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.logsumexp(-1).sum().backward()
        gradients.append(embedded.grad)
    scale = gradients[1].abs().max()
    assert_close(gradients[0] / scale, gradients[1] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "opt"])
def test_every_linear_inside_the_blocks_is_frozen_and_no_other(tmp_path, model_type):
    model = load(save_tiny(tmp_path, model_type)).model
    expected = {
        name for name, m in tiny_model(model_type).named_modules() if isinstance(m, nn.Linear) and "layers." in name
    }
    assert {name for name, m in model.named_modules() if isinstance(m, FrozenLinear)} == expected
    assert not any(isinstance(module, nn.Linear) for module in blocks_of(model).modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_sdpa_and_eager_agree_where_auto_takes_sdpa(tmp_path):
    save_tiny(tmp_path)
    assert_close(load(tmp_path).model(IDS).logits, reference(tmp_path, "sdpa")(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed", ["fp32", "bf16"])
def test_every_stored_dtype_loads_into_every_compute_dtype(tmp_path, stored, computed):
    model = tiny_model("qwen2", dtype=stored)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = load(tmp_path, computed)
    assert base.compute_dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[computed]
    read = base.model.model.layers[1].mlp.up_proj
    assert read.weight_state.tensors["weight"].dtype == base.compute_dtype
    assert torch.equal(
        read.dense_weight(base.compute_dtype), model.model.layers[1].mlp.up_proj.weight.to(base.compute_dtype)
    )
    assert base.model.model.norm.weight.dtype == base.model.lm_head.weight.dtype == base.compute_dtype
    assert base.model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("format", ["nf4", "int8", "bf16"])
def test_a_quantized_base_computes_with_the_dequantized_weights(tmp_path, format):
    save_tiny(tmp_path, "qwen2")
    base, dense = load(tmp_path, quantization={"format": format}), reference(tmp_path, "sdpa")
    for name, module in base.model.named_modules():
        if isinstance(module, FrozenLinear):
            assert module.weight_state.format == format
            dense.get_submodule(name).weight.copy_(module.dense_weight(torch.float32))
    assert_close(base.model(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-4)


def test_shards_load_like_one_file_and_have_the_same_identity(tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    save_tiny(one)
    tiny_model("llama").save_pretrained(many, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(many)
    assert len(list(many.glob("*.safetensors"))) > 2
    a, b = load(one), load(many)
    assert torch.equal(a.model(IDS).logits, b.model(IDS).logits)
    assert a.identity.base == b.identity.base
    assert a.identity.model_copy(update={"source": ""}) == b.identity.model_copy(update={"source": ""})


def test_a_tied_head_is_one_parameter(tmp_path):
    model = load(save_tiny(tmp_path, "qwen2")).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_draws_no_random_numbers_and_leaves_the_config_alone(tmp_path):
    save_tiny(tmp_path)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    base = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    assert base.source.config is not base.model.config


def test_stored_end_tokens_reach_the_model(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert load(tmp_path).model.generation_config.eos_token_id == [2, 0]


def test_the_tokenizer_is_the_saved_one(tmp_path):
    save_tiny(tmp_path)
    text = "Où est 1234?<|im_end|>"
    assert load(tmp_path).tokenizer(text).input_ids == AutoTokenizer.from_pretrained(tmp_path)(text).input_ids


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    save_tiny(tmp_path, vocab=499)
    with pytest.raises(TopcoatError, match=r"token id 499 .* but the model has 499 embedding rows"):
        load(tmp_path)
    save_tiny(tmp_path, vocab=500)
    load(tmp_path)


def test_a_soft_capped_model_never_runs_on_sdpa():
    capped = tiny_config("gemma2")
    assert resolve_attention(ModelSettings(path="x"), capped) != "sdpa"
    assert resolve_attention(ModelSettings(path="x", attention="eager"), capped) == "eager"
    with pytest.raises(TopcoatError, match="sdpa would leave out the attention soft cap of gemma2"):
        resolve_attention(ModelSettings(path="x", attention="sdpa"), capped)


def test_bf16_is_chosen_where_the_processor_computes_it(tmp_path):
    info = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx2", False), ("fpu avx512_bf16", True), ("amx_bf16", True)):
        info.write_text(f"processor: 0\nflags\t\t: {flags}\n")
        assert _has_native_bf16(torch.device("cpu"), info) is expected
    assert not _has_native_bf16(torch.device("cpu"), tmp_path / "absent")


def test_an_asked_dtype_is_honoured():
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)):
        assert resolve_compute_dtype(name, torch.device("cpu")) == dtype


def test_a_dtype_the_device_cannot_compute_in_is_an_error(monkeypatch):
    def not_implemented(*_):
        raise RuntimeError("\"addmm_impl\" not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", not_implemented)
    with pytest.raises(TopcoatError, match=r"cpu cannot compute in fp16: .* not implemented for 'Half'"):
        resolve_compute_dtype("fp16", torch.device("cpu"))


def test_an_absent_device_is_named():
    with pytest.raises(TopcoatError, match="there is no device cuda:99 here") as caught:
        resolve_device("cuda:99")
    assert "cpu" in str(caught.value)
    assert resolve_device("cpu").type == "cpu"
    assert set(FAMILIES) <= set(TINY_TYPES)
