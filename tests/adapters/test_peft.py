"""PEFT reads our adapters and we read PEFT's, with the same logits."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.settings import DoraConfig, Ia3Config, LoraConfig, MissConfig, VeraConfig
from topcoat.errors import TopcoatError

peft = pytest.importorskip("peft")

OURS = {
    "all-linear": LoraConfig(r=4, lora_alpha=8),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True),
    "names": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "one layer": LoraConfig(r=4, target_modules=[r"model\.layers\.1\.self_attn\.[qv]_proj", "0.mlp.up_proj"]),
    "modules_to_save": LoraConfig(r=4, modules_to_save=["lm_head", "embed_tokens", "norm"]),
    "layers": LoraConfig(r=4, layers_to_transform=[1], exclude_modules=["v_proj", r".*\.up_proj"]),
    "ranks": LoraConfig(r=4, rank_pattern={"q_proj": 8, r"layers\.1\.mlp\.down_proj": 2}),
    "alphas": LoraConfig(r=4, use_rslora=True, alpha_pattern={"mlp.up_proj": 3.5}, rank_pattern={"o_proj": 3}),
    "dora": DoraConfig(r=4, use_rslora=True, rank_pattern={"q_proj": 2}),
    "ia3": Ia3Config(),
    "ia3 of one layer": Ia3Config(
        layers_to_transform=[1], target_modules="all-linear", feedforward_modules=["mlp.up_proj"]
    ),
    "ia3 of outputs": Ia3Config(feedforward_modules=[]),
    "vera": VeraConfig(r=8, modules_to_save=["lm_head"]),
    "vera of one layer": VeraConfig(r=8, target_modules=["1.self_attn.v_proj", "q_proj"], projection_prng_key=3),
    "miss": MissConfig(r=16),
    "miss that does not divide": MissConfig(r=6, layers_to_transform=[0]),
    "tokens": LoraConfig(r=4, trainable_token_indices=[5, 3, 17]),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
def test_peft_computes_our_adapter(load, logits, from_transformers, train_a_little, tmp_path, config):
    model = load().model
    adapters = attach(model, config)
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    theirs = peft.PeftModel.from_pretrained(from_transformers(), tmp_path)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(theirs), logits(load().model), atol=1e-2)
    assert theirs.get_nb_trainable_parameters()[1] - adapters.count() == sum(  # on the same linears, and no others
        p.numel() for p in from_transformers().parameters()
    )


@pytest.mark.parametrize("config", [LoraConfig(r=4), DoraConfig(r=4)], ids=["lora", "dora"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "smollm3", "olmo2"])
def test_peft_computes_our_adapter_on_every_kind_of_model(
    load, logits, from_transformers, train_a_little, tmp_path, model_type, config
):
    model = load(model_type).model
    adapters = attach(model, config)
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    theirs = peft.PeftModel.from_pretrained(from_transformers(model_type), tmp_path)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "gemma3_text"])
def test_trained_rows_of_a_tied_embedding_are_the_heads_too(
    load, logits, from_transformers, train_a_little, tmp_path, model_type
):
    model = load(model_type).model
    adapters = attach(model, LoraConfig(r=2, trainable_token_indices=[4, 30, 7]))
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    assert [name for name in adapters.parameters() if "token" in name] == [
        "model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    theirs = peft.PeftModel.from_pretrained(from_transformers(model_type), tmp_path)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    again = load(model_type).model
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


THEIRS = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    "default": {"target_modules": None},
    "rslora": {"target_modules": ["o_proj"], "use_rslora": True, "lora_alpha": 5},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "layers": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "layers_to_transform": 1,
        "exclude_modules": ["up_proj"],
    },
    "regex out": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*v_proj"},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"self_attn.q_proj": 8, r"layers.1.mlp.*": 2},
        "alpha_pattern": {"^model.layers.0.*": 3, "q_proj": 5},
    },
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [4, 30, 7]},
    "tokens by module": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [4, 30]}},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "lora_alpha": 7},
    "gaussian": {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("settings", THEIRS.values(), ids=THEIRS.keys())
def test_we_compute_an_adapter_of_peft(load, logits, from_transformers, tmp_path, settings):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, **settings)
    theirs = peft.get_peft_model(from_transformers(), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    theirs.save_pretrained(tmp_path)
    model = load().model
    adapters = load_adapter(model, tmp_path)
    assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert adapters.count() == theirs.get_nb_trainable_parameters()[0]


OTHERS = {
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "ia3 by expression": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=r".*(v|up|down)_proj", feedforward_modules=r".*(up|down)_proj"
    ),
    "vera": lambda: peft.VeraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "down_proj"]),
    "vera without its projections": lambda: peft.VeraConfig(
        task_type="CAUSAL_LM", r=8, target_modules="all-linear", save_projection=False, projection_prng_key=11
    ),
    "miss": lambda: peft.MissConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "down_proj"]),
    "miss that does not divide": lambda: peft.MissConfig(
        task_type="CAUSAL_LM", r=7, target_modules=["q_proj", "o_proj"], layers_to_transform=[1]
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_we_compute_another_methods_adapter_of_peft(load, logits, from_transformers, tmp_path, make):
    theirs = peft.get_peft_model(from_transformers(), make()).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    theirs.save_pretrained(tmp_path)
    model = load().model
    adapters = load_adapter(model, tmp_path)
    assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert adapters.count() == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("kind", ["bat", "mini"])
def test_forms_of_miss_that_are_no_lora_are_refused(load, from_transformers, tmp_path, kind):
    config = peft.MissConfig(task_type="CAUSAL_LM", r=8, mini_r=8, target_modules=["q_proj"], init_weights=kind)
    peft.get_peft_model(from_transformers(), config).save_pretrained(tmp_path)
    with pytest.raises(Exception, match=f"init_weights is '{kind}', which this version does not compute"):
        load_adapter(load().model, tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": r".*(v_proj|lm_head|embed_tokens)"}, "lm_head, embed_tokens"),
    ],
)
def test_a_lora_of_the_head_or_the_embedding_is_refused_by_its_name_with_the_merge_as_way_out(
    load, from_transformers, tmp_path, settings, named
):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, **settings)
    peft.get_peft_model(from_transformers(), config).save_pretrained(tmp_path)
    with pytest.raises(TopcoatError) as caught:
        load_adapter(load().model, tmp_path)
    [problem] = caught.value.problems
    assert problem.what == (
        f"target_modules has {named}, and this version adapts the linears of the blocks alone, not the head or the "
        "embedding"
    )
    assert problem.where == str(tmp_path / "adapter_config.json")
    assert problem.fix == "merge it with PEFT, and give the merged model as model.path"


def test_a_head_that_the_file_leaves_out_is_no_reason_to_refuse(load, from_transformers, tmp_path):
    out = ["lm_head", "k_proj"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*([kv]_proj|lm_head)", exclude_modules=out)
    peft.get_peft_model(from_transformers(), config).save_pretrained(tmp_path)
    assert {path.rsplit(".")[-1] for path in load_adapter(load().model, tmp_path).layers} == {"v_proj"}


def test_an_activated_lora_is_not_sent_to_a_merge_that_peft_refuses(load, from_transformers, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], alora_invocation_tokens=[5, 6])
    theirs = peft.get_peft_model(from_transformers(), config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(TopcoatError) as caught:
        load_adapter(load().model, tmp_path)
    assert "alora_invocation_tokens is [5, 6], which this version does not compute" in str(caught.value)
    assert "use it with PEFT as it is: PEFT cannot merge an activated LoRA either" in str(caught.value)
    with pytest.raises(NotImplementedError, match="does not support merging"):
        theirs.merge_and_unload()


def test_a_start_that_changed_the_base_is_refused_as_peft_would_compute_something_else(
    load, from_transformers, tmp_path
):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    peft.get_peft_model(from_transformers(), config).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="init_lora_weights is 'pissa'"):
        load_adapter(load().model, tmp_path)


def test_peft_merges_our_adapter_to_our_merged_weights(load, folder_of, train_a_little, tmp_path):
    adapters = attach(load().model, LoraConfig(r=4))
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    plain = AutoModelForCausalLM.from_pretrained(folder_of(), dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(plain, tmp_path).merge_and_unload()
    for path, layer in adapters.layers.items():
        assert_close(merged.get_submodule(path).weight.detach(), layer.merged_weight(), rtol=1e-5, atol=1e-6)
