"""Exports for PEFT: one rank and one scale wherever the method is a LoRA, the same logits by PEFT itself."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import DoraConfig, LoraConfig, MissConfig, VeraConfig
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting import peft as exporting
from topcoat.exporting.peft import export_peft
from topcoat.model.load import load_model
from topcoat.model.originals import Originals
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import Nf4Config

CASES = {
    "rslora with patterns": (LoraConfig(r=4, use_rslora=True, rank_pattern={"q_proj": 2}), "LORA", 4),
    "alphas": (LoraConfig(r=3, alpha_pattern={"up_proj": 1.5}, trainable_token_indices=[5, 9]), "LORA", 3),
    "pissa": (LoraConfig(r=2, init_lora_weights="pissa", modules_to_save=["lm_head"]), "LORA", 4),
    "miss": (MissConfig(r=6), "LORA", 6),
    "dora": (DoraConfig(r=4), "LORA", None),
    "vera": (VeraConfig(r=8), "VERA", None),
}


@pytest.mark.parametrize(("config", "kind", "rank"), CASES.values(), ids=CASES.keys())
def test_peft_computes_what_was_trained(trained, logits, prompts, tmp_path, config, kind, rank):
    peft = pytest.importorskip("peft")
    base, adapters = trained("llama", config=config)
    expected = logits(base.model)
    done = export_peft(base, adapters, tmp_path / "out", prompts, lambda text: None)
    assert done.rank == rank
    stated = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert stated["peft_type"] == kind
    if rank is not None:
        assert stated["r"] == stated["lora_alpha"] == rank
        assert not stated["rank_pattern"]
        assert not stated["alpha_pattern"]
        assert not stated["use_rslora"]
    model = AutoModelForCausalLM.from_pretrained(base.settings.path, dtype=torch.float32)
    found = logits(peft.PeftModel.from_pretrained(model, tmp_path / "out"))
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    proof = json.loads((tmp_path / "out" / "peft_proof.json").read_text())
    assert proof["verified"] is True
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_a_loftq_adapter_is_written_with_the_warning_that_it_belongs_to_its_rounded_base(logits, prompts, tmp_path):
    peft = pytest.importorskip("peft")
    path = save_tiny(tmp_path / "base", "llama", dtype=torch.float32)
    settings = ModelSettings(path=str(path), quantization=Nf4Config(), compute_dtype="fp32", device="cpu")
    base = load_model(settings)
    adapters = attach(base.model, LoraConfig(r=4, init_lora_weights="loftq"), originals=Originals(base))
    expected, heard = logits(base.model), []
    done = export_peft(base, adapters, tmp_path / "out", prompts, heard.append)
    [warning] = done.warnings
    assert heard[-1] == f"warning: {warning}"
    assert warning.startswith(
        "the adapter repairs the rounding of its base (nf4 block_size=64 double_quant=True): PEFT and vLLM must load it"
    )
    for written in (json.loads((tmp_path / "out" / "peft_proof.json").read_text()), done.as_json()):
        assert written["warnings"] == [warning]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)  # the base that the directory names
    unrounded = logits(model)
    found = logits(peft.PeftModel.from_pretrained(model, tmp_path / "out"))
    assert (found - expected).norm() > 100 * done.proof.relative_error * expected.norm()
    assert (found - unrounded).norm() > (expected - unrounded).norm() / 10  # it adds what it should repair


def test_an_adapter_of_any_base_is_written_without_a_warning(trained, prompts, tmp_path):
    base, adapters = trained("llama", "nf4")
    heard: list[str] = []
    assert export_peft(base, adapters, tmp_path / "out", prompts, heard.append).warnings == ()
    assert not [line for line in heard if line.startswith("warning")]


def test_an_adapter_that_was_lost_on_the_way_is_refused(trained, prompts, tmp_path, monkeypatch):
    base, adapters = trained("llama")
    monkeypatch.setattr(exporting, "load_adapter", lambda model, folder, identity: None)
    with pytest.raises(Refused, match=r"the adapter in .* does not compute what it should"):
        export_peft(base, adapters, tmp_path / "out", prompts, lambda text: None)
    assert not (tmp_path / "out").exists()


def test_exporting_needs_a_prompt_to_prove_itself_on(trained, tmp_path):
    base, adapters = trained("llama")
    with pytest.raises(TopcoatError, match="no prompts to prove the files on"):
        export_peft(base, adapters, tmp_path / "out", [], lambda text: None)
