"""Merged = unmerged, for every family and format, also for transformers; and a merge that is not is never published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from topcoat.adapters.settings import (
    AdaloraConfig,
    DoraConfig,
    FullConfig,
    Ia3Config,
    IecConfig,
    LoraConfig,
    MissConfig,
    VeraConfig,
)
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting import merge
from topcoat.exporting.merge import merge_model, write_model
from topcoat.exporting.merged import merged_tensors, output_dtype
from topcoat.exporting.proof import TOLERANCES
from topcoat.model.tiny import save_tiny
from topcoat.quant.dense import DTYPES


def quiet(text: str) -> None:
    """Says nothing."""


def by_transformers(folder: Path) -> torch.nn.Module:
    """The directory as transformers loads it; nothing missing, nothing left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("format", ["none", "fp32", "bf16", "nf4", "int8"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "phi3", "gpt_neox"])
def test_merged_is_unmerged_and_transformers_reads_it(trained, logits, prompts, tmp_path, model_type, format):
    base, adapters = trained(model_type, format)
    expected = logits(base.model)
    with adapters.off():
        assert off(logits(base.model), expected) > 0.05  # there is something to merge
    proof = merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert proof.holds
    assert proof.relative_error < 1e-5
    assert off(logits(by_transformers(tmp_path / "merged")), expected) < 1e-5


METHODS = {
    "dora": DoraConfig(r=4),
    "ia3": Ia3Config(),
    "vera": VeraConfig(r=8),
    "miss": MissConfig(r=6),
    "adalora": AdaloraConfig(init_r=6, target_r=4),
    "iec": IecConfig(r=6),
    "token rows": LoraConfig(r=2, trainable_token_indices=[7, 4, 200]),
    "ranks": LoraConfig(r=4, rank_pattern={"q_proj": 2}, layers_to_transform=[1], freeze_lora_a=True),
}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("format", ["none", "nf4"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # qwen2: biases, and a head tied to the embedding
def test_every_method_merges(trained, logits, prompts, tmp_path, model_type, format, config):
    base, adapters = trained(model_type, format, config=config)
    expected = logits(base.model)
    assert merge_model(base, adapters, tmp_path / "merged", prompts, quiet).relative_error < 1e-5
    assert off(logits(by_transformers(tmp_path / "merged")), expected) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_takes_part_of_the_weight_merges_into_the_base_as_it_was(
    trained, logits, prompts, tmp_path, start
):
    base, adapters = trained("llama", "none", config=LoraConfig(r=4, init_lora_weights=start))
    expected = logits(base.model)
    assert merge_model(base, adapters, tmp_path / "merged", prompts, quiet).relative_error < 1e-5
    assert off(logits(by_transformers(tmp_path / "merged")), expected) < 1e-5


@pytest.mark.parametrize(("coarse", "wanted"), [(["bf16"], "float16"), (["bf16", "fp16"], "float32")])
def test_what_bf16_would_lose_is_written_in_the_next_finer_dtype(
    trained, logits, prompts, tmp_path, monkeypatch, coarse, wanted
):
    base, adapters = trained("llama", "none", torch.bfloat16)
    expected, said = logits(base.model), []
    for name in coarse:  # as if rounding showed where it does not: no update of a tiny model is small enough
        monkeypatch.setitem(TOLERANCES, DTYPES[name], 1e-9)
    proof = merge_model(base, adapters, tmp_path / "merged", prompts, said.append)
    assert proof.holds
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == wanted
    assert [text.split(":")[0] for text in said if "coarse" in text] == [
        f"{name} is too coarse for what was trained" for name in coarse
    ]
    model = by_transformers(tmp_path / "merged")
    assert off(logits(model), expected) < 2e-3
    for path, layer in adapters.layers.items():
        held = layer.merged_weight().to(getattr(torch, wanted)).float()
        assert torch.equal(model.get_submodule(path).weight, held)
    assert sorted(file.name for file in tmp_path.iterdir() if "merged" in file.name) == ["merged"]


@pytest.mark.parametrize("format", ["none", "nf4"])
def test_a_bf16_checkpoint_stays_bf16_and_is_off_by_its_rounding_alone(trained, logits, prompts, tmp_path, format):
    base, adapters = trained("llama", format, torch.bfloat16)
    assert output_dtype(base) == torch.bfloat16
    expected = logits(base.model)
    proof = merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert 1e-5 < proof.relative_error < proof.tolerance == 1e-2
    model = by_transformers(tmp_path / "merged")
    assert off(logits(model), expected) < 1e-2
    for path, layer in adapters.layers.items():
        assert torch.equal(model.get_submodule(path).weight, layer.merged_weight().bfloat16().float())
    stored = safetensors.torch.load((tmp_path / "merged" / "model.safetensors").read_bytes())
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("format", ["none", "nf4"])
def test_modules_trained_whole_are_merged_as_they_are(trained, logits, prompts, tmp_path, format):
    base, adapters = trained(
        "llama", format, config=LoraConfig(r=2, modules_to_save=["lm_head", "embed_tokens", "norm"])
    )
    expected = logits(base.model)
    merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    model = by_transformers(tmp_path / "merged")
    assert off(logits(model), expected) < 1e-5
    assert torch.equal(model.lm_head.weight, adapters.parameters()["lm_head.weight"])


def test_the_linears_that_carry_no_adapter_are_merged_as_training_saw_them(trained, logits, prompts, tmp_path):
    base, adapters = trained("llama", "nf4", config=LoraConfig(r=2, target_modules=["q_proj"]))
    expected = logits(base.model)
    merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert off(logits(by_transformers(tmp_path / "merged")), expected) < 1e-5


def test_a_full_fine_tune_is_written_as_it_is(trained, logits, tmp_path):
    base, adapters = trained("qwen2", config=FullConfig())
    (tmp_path / "model").mkdir()
    write_model(base, adapters, tmp_path / "model")
    assert off(logits(by_transformers(tmp_path / "model")), logits(base.model)) < 1e-6


def test_a_checkpoint_that_leaves_out_the_decoders_prefix_is_merged_too(trained, logits, prompts, tmp_path):
    folder = save_tiny(tmp_path / "bare", "qwen2")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(bare, {"format": "pt"}))
    base, adapters = trained(folder=folder)
    expected = logits(base.model)
    assert merge_model(base, adapters, tmp_path / "merged", prompts, quiet).holds
    assert off(logits(by_transformers(tmp_path / "merged")), expected) < 1e-5


def test_what_the_directory_holds_is_complete(trained, prompts, tmp_path):
    base, adapters = trained("llama", "nf4")
    said: list[str] = []
    proof = merge_model(base, adapters, tmp_path / "merged", prompts, said.append)
    assert json.loads((tmp_path / "merged" / "merge_proof.json").read_text()) == proof.as_json()
    assert proof.as_json()["verified"] is True
    assert (proof.prompts, proof.tokens) == (3, 42)
    assert said == ["writing fp32 weights", "proving it on 3 held-out prompts"]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == base.tokenizer.chat_template
    assert tokenizer("Hello there")["input_ids"] == base.tokenizer("Hello there")["input_ids"]


def without_one_delta(base, adapters, dtype):
    """A merge that forgets one adapted linear."""
    for name, tensor in merged_tensors(base, adapters, dtype):
        path = name.removesuffix(".weight")
        if path == "model.layers.1.mlp.down_proj":
            tensor = tensor.float() - adapters.layers[path].delta_weight()
        yield name, tensor.to(dtype)


def with_a_nan(base, adapters, dtype):
    for name, tensor in merged_tensors(base, adapters, dtype):
        if name == "model.norm.weight":
            tensor[3] = float("nan")
        yield name, tensor


def without_one_tensor(base, adapters, dtype):
    yield from ((n, t) for n, t in merged_tensors(base, adapters, dtype) if n != "model.norm.weight")


@pytest.mark.parametrize(
    ("broken", "kind", "message"),
    [
        (without_one_delta, Refused, "does not compute what it should: its logits are off by"),
        (with_a_nan, TopcoatError, "tensor model.norm.weight: 1 of 64 values are not finite"),
        (without_one_tensor, TopcoatError, "1 parameters of LlamaForCausalLM are not in the checkpoint"),
    ],
)
def test_a_merge_that_went_wrong_is_refused_and_leaves_nothing(
    trained, prompts, tmp_path, monkeypatch, broken, kind, message
):
    base, adapters = trained()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(merge, "merged_tensors", broken)
    with pytest.raises(kind) as caught:
        merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_there_is_not_touched(trained, prompts, tmp_path):
    base, adapters = trained()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(TopcoatError, match="merged exists already"):
        merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_merging_needs_a_prompt_to_prove_itself_on(trained, tmp_path):
    base, adapters = trained()
    with pytest.raises(TopcoatError, match="no prompts to prove the merge on"):
        merge_model(base, adapters, tmp_path / "merged", [], quiet)
    assert not (tmp_path / "merged").exists()


def test_the_base_is_what_it_was_after_a_merge(trained, logits, prompts, tmp_path):
    base, adapters = trained("llama", "nf4")
    before = logits(base.model)
    merge_model(base, adapters, tmp_path / "merged", prompts, quiet)
    assert torch.equal(logits(base.model), before)
