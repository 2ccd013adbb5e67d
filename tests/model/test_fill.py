"""Strict both ways: what fits nowhere and what gets nothing is said, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from topcoat.errors import TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny

IDS = torch.arange(3, 40)[None]


def load(path: Path, dtype: str = "fp32", **settings):
    return load_model(ModelSettings(path=str(path), compute_dtype=dtype, device="cpu", **settings))


def edit(folder: Path, model_type: str = "llama", *, drop=(), rename=None, **values) -> Path:
    """A saved tiny model with its weight file changed."""
    save_tiny(folder, model_type)
    file = folder / "model.safetensors"
    tensors = {
        (rename or (lambda name: name))(name): value for name, value in load_file(file).items() if name not in drop
    }
    save_file(tensors | {name.replace("__", "."): value for name, value in values.items()}, file)
    return folder


def test_a_tensor_that_fits_nowhere_and_a_parameter_without_one_are_said_together(tmp_path):
    edit(tmp_path, drop=("model.norm.weight",), model__norm__wieght=torch.ones(64))
    with pytest.raises(TopcoatError) as caught:
        load(tmp_path)
    assert "1 tensors of the checkpoint fit nowhere in LlamaForCausalLM: model.norm.wieght" in str(caught.value)
    assert "1 parameters of LlamaForCausalLM are not in the checkpoint: model.norm.weight" in str(caught.value)


def test_many_leftovers_are_counted_and_the_first_are_listed(tmp_path):
    edit(tmp_path, **{f"extra__{i}": torch.ones(1) for i in range(9)})
    with pytest.raises(TopcoatError, match=r"9 tensors.*extra\.0, extra\.1, extra\.2, extra\.3, extra\.4 and 4 more"):
        load(tmp_path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    edit(tmp_path, model__norm__weight=torch.ones(63))
    with pytest.raises(TopcoatError, match=r"model\.norm\.weight: the config asks for \[64\], the file has \[63\]"):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("format", [None, "nf4"])
def test_a_value_that_is_not_finite_is_named_with_tensor_and_file(tmp_path, value, name, format):
    save_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TopcoatError) as caught:
        load(tmp_path, quantization=format and {"format": format})
    assert f"tensor {name}: 1 of" in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_value_too_large_for_the_compute_dtype_is_an_error(tmp_path):
    edit(tmp_path, model__norm__weight=torch.full((64,), 1e6))
    with pytest.raises(TopcoatError, match=r"64 of 64 values are not finite in torch\.float16"):
        load(tmp_path, "fp16")


def test_caches_of_old_files_are_left_out_and_do_not_count(tmp_path):
    plain = load(save_tiny(tmp_path / "plain")).identity.base
    extra = {f"model__layers__{i}__self_attn__rotary_emb__inv_freq": torch.ones(8) for i in range(2)}
    assert load(edit(tmp_path / "old", **extra)).identity.base == plain


def test_old_gpt_neox_names_and_masks_load(tmp_path):
    masks = {"gpt_neox__layers__0__attention__bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    masks["gpt_neox__layers__0__attention__masked_bias"] = torch.tensor(-1e9)
    old = load(edit(tmp_path / "old", "gpt_neox", **masks))
    new = load(edit(tmp_path / "new", "gpt_neox", rename=lambda name: name.replace("embed_out", "lm_head")))
    assert torch.equal(old.model(IDS).logits, new.model(IDS).logits)
    assert old.identity.base == new.identity.base


def test_a_checkpoint_without_the_decoder_prefix_loads(tmp_path):
    bare = load(edit(tmp_path / "bare", rename=lambda name: name.removeprefix("model.")))
    plain = load(save_tiny(tmp_path / "plain"))
    assert torch.equal(bare.model(IDS).logits, plain.model(IDS).logits)
    assert bare.identity.base == plain.identity.base


def test_a_copy_of_a_tied_head_is_fine_and_does_not_count(tmp_path):
    plain = load(save_tiny(tmp_path / "plain", "qwen2"))
    embedding = load_file(tmp_path / "plain" / "model.safetensors")["model.embed_tokens.weight"]
    copied = load(edit(tmp_path / "copied", "qwen2", lm_head__weight=embedding))
    assert copied.identity.base == plain.identity.base
    only_head = edit(tmp_path / "head", "qwen2", drop=("model.embed_tokens.weight",), lm_head__weight=embedding)
    assert torch.equal(load(only_head).model(IDS).logits, plain.model(IDS).logits)


def test_a_tied_head_of_other_values_is_refused(tmp_path):
    edit(tmp_path, "qwen2", lm_head__weight=torch.ones(512, 64))
    with pytest.raises(
        TopcoatError, match=r"ties model\.embed_tokens\.weight and lm_head\.weight, but .* different values"
    ):
        load(tmp_path)


def test_an_integer_tensor_in_place_of_a_weight_is_refused(tmp_path):
    edit(tmp_path, model__norm__weight=torch.ones(64, dtype=torch.int8))
    with pytest.raises(TopcoatError, match=r"model\.norm\.weight is stored as I8, which is no plain float format"):
        load(tmp_path)


def test_biases_reach_their_frozen_linears(tmp_path):
    save_tiny(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    ours = load(tmp_path)
    assert ours.model.model.layers[0].mlp.down_proj.bias.abs().sum() > 0
    with torch.no_grad():
        assert_close(ours.model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)
