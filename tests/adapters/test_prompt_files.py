"""PEFT reads our virtual tokens and we read PEFT's, with the same logits; and what of PEFT's is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.settings import PrefixTuningConfig, PromptTuningConfig, PTuningConfig, PTuningV2Config
from topcoat.errors import TopcoatError
from topcoat.model.generate import generate

peft = pytest.importorskip("peft")

OURS = {
    "prompt": PromptTuningConfig(num_virtual_tokens=5),
    "mlp": PTuningConfig(num_virtual_tokens=5, encoder_hidden_size=12),
    "lstm": PTuningConfig(num_virtual_tokens=4, encoder_reparameterization_type="LSTM", encoder_num_layers=3),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5),
    "v2": PTuningV2Config(num_virtual_tokens=1),
}
FAMILIES = ["llama", "gemma2", "gpt_neox"]


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
@pytest.mark.parametrize("model_type", FAMILIES)
def test_peft_computes_our_virtual_tokens_and_so_do_we_again(
    load, logits, from_transformers, train_a_little, tmp_path, model_type, config
):
    model = load(model_type).model
    before = logits(model)
    adapters = attach(model, config)
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["prompt_embeddings"]
    expected = logits(model)
    theirs = peft.PeftModel.from_pretrained(from_transformers(model_type), tmp_path)
    n = 0 if isinstance(config, PrefixTuningConfig | PTuningV2Config) else config.num_virtual_tokens
    assert_close(logits(theirs)[:, n:], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-2)
    again = load(model_type).model
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(logits(again), expected)
    assert loaded.config.method == config.method
    assert list(loaded.parameters()) == ["virtual_tokens.embedding"]  # the network is not in the file
    second = tmp_path / "again"
    second.mkdir()
    save_adapter(loaded, second, "tiny")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (second / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("config", [OURS["prompt"], OURS["v2"]], ids=["prompt", "v2"])
def test_what_trains_beside_them_is_in_the_file_as_peft_reads_it(
    load, logits, from_transformers, train_a_little, tmp_path, config
):
    model = load().model
    adapters = attach(model, config.model_copy(update={"modules_to_save": ["norm"]}))
    train_a_little(adapters)
    with torch.no_grad():
        adapters.parameters()["model.norm.weight"].mul_(1.5)
    save_adapter(adapters, tmp_path, "tiny")
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        "prompt_embeddings",
        "base_model.model.norm.weight",
    }
    expected = logits(model)
    n = config.num_virtual_tokens if isinstance(config, PromptTuningConfig) else 0
    theirs = peft.PeftModel.from_pretrained(from_transformers(), tmp_path)
    assert_close(logits(theirs)[:, n:], expected, rtol=1e-5, atol=1e-5)
    again = load().model
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(logits(again), expected)
    loaded.detach()
    assert_close(logits(again), logits(load().model), rtol=0, atol=0)


THEIRS = {
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    "mlp": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=20),
    "lstm": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=6,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=20,
        encoder_dropout=0.1,
    ),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    "projected": peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=7
    ),
}


def theirs_in(folder: Path, model, name: str):
    """A PEFT directory, and the model that wrote it in eval mode."""
    torch.manual_seed(4)
    theirs = peft.get_peft_model(model, copy.deepcopy(THEIRS[name])).eval()  # it writes shapes into its config
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("name", THEIRS)
def test_we_compute_virtual_tokens_of_peft_and_answer_as_it_does(
    load, logits, from_transformers, tmp_path, name, model_type
):
    theirs = theirs_in(tmp_path, from_transformers(model_type), name)
    base = load(model_type)
    load_adapter(base.model, tmp_path)
    mine, other = logits(base.model), logits(theirs)
    assert_close(mine, other[:, -mine.shape[1] :], rtol=1e-5, atol=1e-5)
    prompt = [5, 6, 7, 8]
    ours = generate(base.model, base.tokenizer, [prompt], 5, set())[0]
    ids = torch.tensor([prompt])
    said = theirs.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert ours == said[0, len(prompt) :].tolist()


def test_a_prefix_beside_left_padding_is_peft_s_too(load, from_transformers, tmp_path):
    theirs = theirs_in(tmp_path, from_transformers(), "prefix")
    model = load().model
    load_adapter(model, tmp_path)
    ids, mask = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
        assert_close(model(**given).logits[mask.bool()], theirs(**given).logits[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_virtual_tokens": None}, "lacks 'num_virtual_tokens'"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0: Input should be greater than or equal to 1"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, which this version does not compute"),
        ({"modules_to_save": ["norm"]}, "1 tensors this model expects are absent, first base_model.model.norm.weight"),
        ({"num_virtual_tokens": 7}, "first prompt_embeddings: (6, 128) in the file, (7, 128) here"),
        ({"peft_type": "CPT"}, "peft_type is 'CPT'; this version reads LORA"),
    ],
)
def test_a_file_that_means_something_else_is_refused(load, logits, from_transformers, tmp_path, changes, what):
    theirs_in(tmp_path, from_transformers(), "prefix")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = load().model
    before = logits(model)
    with pytest.raises(TopcoatError) as caught:
        load_adapter(model, tmp_path)
    assert what in str(caught.value)
    assert "merge it" not in str(caught.value)  # virtual tokens are in no weight
    assert torch.equal(logits(model), before)
    assert not hasattr(model, "virtual_tokens")


@pytest.mark.parametrize("changes", [{"num_transformer_submodules": 2}, {"peft_type": "CPT"}])
def test_virtual_tokens_that_are_not_read_are_left_to_peft(load, from_transformers, tmp_path, changes):
    theirs = theirs_in(tmp_path, from_transformers(), "prompt")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(TopcoatError) as caught:
        load_adapter(load().model, tmp_path)
    assert [problem.fix for problem in caught.value.problems] == [
        "use it with PEFT as it is: PEFT cannot merge virtual tokens either"
    ]
    with pytest.raises((AttributeError, ValueError)):
        theirs.merge_and_unload()


def test_an_adapter_of_another_kind_of_tensor_is_refused(load, from_transformers, tmp_path):
    theirs_in(tmp_path, from_transformers(), "prompt")
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(TopcoatError, match="1 tensors this model expects are absent, first prompt_embeddings"):
        load_adapter(load().model, tmp_path)
