"""GGUF LoRA adapters: by gguf's reader and float64 arithmetic they add what was trained, and llama.cpp serves them."""

from __future__ import annotations

import gguf
import pytest
import torch
from llama_cpp import llama_cpp

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import (
    AdaloraConfig,
    DoraConfig,
    Ia3Config,
    IecConfig,
    LoraConfig,
    MissConfig,
    QaloraConfig,
    VeraConfig,
)
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting import gguf_adapter
from topcoat.exporting.gguf_adapter import export_gguf_lora
from topcoat.exporting.gguf_layout import GgufLayout
from topcoat.exporting.gguf_model import export_gguf
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import IntConfig, Nf4Config


def quiet(text: str) -> None:
    """Says nothing."""


CASES = {
    "lora": LoraConfig(r=4, lora_alpha=7),
    "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True),
    "ranks and alphas": LoraConfig(r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 5.0, "down_proj": 1.5}),
    "pissa": LoraConfig(r=4, init_lora_weights="pissa"),
    "miss": MissConfig(r=6),
    "iec": IecConfig(r=4),
    "adalora": AdaloraConfig(init_r=4, target_r=2),
    "qalora": QaloraConfig(r=2),
}


@pytest.fixture
def trained_on(tmp_path):
    """(model_type, adapter, quantization) -> base and an adapter that has learned something."""

    def make(name="llama", config=None, quantization=None):
        folder = tmp_path / "model"
        if not folder.exists():
            save_tiny(folder, name)
        settings = {"path": str(folder), "compute_dtype": "fp32", "device": "cpu"}
        base = load_model(ModelSettings(**settings, quantization=quantization))
        adapters = attach(base.model, config or LoraConfig(r=2))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return base, adapters

    return make


def as_llama_cpp_adds(file, name: str, heads: int | None) -> torch.Tensor:
    """What is added to the weight `name`, (O, I) float64, q and k of Llama back in transformers' order of rows.

    llama.cpp: scale = alpha / r with r from lora_b, or 1 where alpha is 0. LlamaModel.permute swaps (2, K/2) a head.
    """
    reader = gguf.GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    found = {tensor.name: torch.from_numpy(tensor.data.copy()).double() for tensor in reader.tensors}
    A, B = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
    if heads is not None:
        B = B.reshape(heads, B.shape[0] // heads // 2, 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)
    return (alpha / A.shape[0] if alpha else 1.0) * B @ A


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_what_llama_cpp_adds_is_what_was_trained(trained_on, prompts, tmp_path, config):
    quantization = IntConfig() if isinstance(config, QaloraConfig) else None
    base, adapters = trained_on("llama", config, quantization)
    trained = {
        path: layer.merged_weight().double() - layer.base.dense_weight(torch.float32).double()
        for path, layer in adapters.layers.items()
    }
    done = export_gguf_lora(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert done.proof.relative_error < 1e-5
    assert done.linears == len(trained) == 14
    heads = {"attn_q": 4, "attn_k": 2}
    roles = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    roles |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for path, expected in trained.items():
        role = roles[path.rsplit(".", 1)[-1]]
        found = as_llama_cpp_adds(done.file, f"blk.{path.split('.')[2]}.{role}.weight", heads.get(role))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_file_says_what_llama_cpp_checks(trained_on, prompts, tmp_path):
    base, adapters = trained_on("qwen2")
    done = export_gguf_lora(base, adapters, tmp_path / "out", "F16", prompts, quiet)
    fields = gguf.GGUFReader(done.file).fields
    wanted = {"general.architecture": "qwen2", "general.type": "adapter", "adapter.type": "lora"}
    assert {key: fields[key].contents() for key in wanted} == wanted
    assert fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    names = {tensor.name for tensor in gguf.GGUFReader(done.file).tensors}
    assert {name.rsplit(".", 1)[-1] for name in names} == {"lora_a", "lora_b"}
    assert len(names) == 28
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["adapter.gguf", "gguf_lora_proof.json"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gpt_neox", "phi3"])
def test_llama_cpp_with_base_and_adapter_computes_base_and_adapter(trained_on, prompts, tmp_path, name):
    config = LoraConfig(r=4, use_rslora=True, rank_pattern={"0.self_attn.o_proj": 2} if name == "llama" else {})
    base, adapters = trained_on(name, config)
    untrained = load_model(base.settings)
    whole = export_gguf(untrained, attach(untrained.model, LoraConfig(r=1)), tmp_path / "base", "F32", prompts, quiet)
    asked = [list(range(start, start + 25)) for start in (3, 63, 123)]
    with torch.no_grad():
        own = [base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1) for ids in asked]
    done = export_gguf_lora(base, adapters, tmp_path / "out", "F32", prompts, quiet)
    compared = 0
    with llama_cpp(whole.file, done.file) as peer:
        for ids, expected in zip(asked, own, strict=True):
            found, plain = peer.next_logprobs(ids), peer.next_logprobs(ids, lora=[{"id": 0, "scale": 0.0}])
            assert all(abs(float(expected[token]) - value) < 0.05 for token, value in found.items())
            assert not found or found != plain
            compared += len(found)
    assert compared


REFUSED = {
    "dora": (DoraConfig(r=2), None, "adapted by dora, which no LoRA computes"),
    "vera": (VeraConfig(r=8), None, "adapted by vera, which no LoRA computes"),
    "ia3": (Ia3Config(), None, "adapted by ia3, which no LoRA computes"),
    "modules": (LoraConfig(r=2, modules_to_save=["lm_head"]), None, "lm_head trained whole"),
    "rows": (LoraConfig(r=2, trainable_token_indices=[5]), None, "rows of the embedding trained"),
}


@pytest.mark.parametrize(("config", "stored", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_cannot_put_beside_a_base_is_refused_with_the_way_out(
    trained_on, prompts, tmp_path, config, stored, message
):
    base, adapters = trained_on("llama", config, stored)
    with pytest.raises(TopcoatError) as caught:
        export_gguf_lora(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert message in str(caught.value)
    assert "--to gguf" in caught.value.problems[0].fix
    assert caught.value.problems[0].where
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_repairs_a_rounding_is_refused(trained_on, prompts, tmp_path):
    base, adapters = trained_on("llama", LoraConfig(r=2), Nf4Config())
    adapters.only_on = {"model.layers.0.mlp.up_proj": "nf4 block_size=64"}
    with pytest.raises(TopcoatError, match="repairs the rounding of nf4 block_size=64"):
        export_gguf_lora(base, adapters, tmp_path / "out", None, prompts, quiet)


def test_rows_in_another_order_are_found_and_nothing_is_left(trained_on, prompts, tmp_path, monkeypatch):
    base, adapters = trained_on("llama")
    monkeypatch.setattr(GgufLayout, "rows", lambda self, name, values: values)
    with pytest.raises(Refused, match=r"[qk]_proj reads back from the file .* off what was trained"):
        export_gguf_lora(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_logits_that_are_not_those_of_the_adapter_are_refused(trained_on, prompts, tmp_path, monkeypatch):
    base, adapters = trained_on("llama")
    monkeypatch.setattr(gguf_adapter, "TOLERANCES", {"Q8_0": 1e-12})
    with pytest.raises(Refused, match=r"the GGUF adapter in .* does not compute what it should"):
        export_gguf_lora(base, adapters, tmp_path / "out", "Q8_0", prompts, quiet)


def test_exporting_needs_a_prompt_to_prove_itself_on(trained_on, tmp_path):
    base, adapters = trained_on("llama")
    with pytest.raises(TopcoatError, match="no prompts to prove the file on"):
        export_gguf_lora(base, adapters, tmp_path / "out", None, [], quiet)
