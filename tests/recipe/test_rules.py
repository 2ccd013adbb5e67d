"""The guidance: each rule speaks where it should and is silent beside it; said, and done as asked."""

from typing import get_args

import pytest

from topcoat.recipe.guidance import Facts, guides
from topcoat.recipe.load import recipe_from_dict
from topcoat.recipe.rules import RULES, learned_since, warn
from topcoat.recipe.settings import RuleId

NF4, INT4 = {"format": "nf4"}, {"format": "int4"}
SMALL, LARGE = Facts(parameters=135_000_000), Facts(parameters=8_000_000_000)
CASES = {  # id -> (what it speaks of, facts, what it says, what it is silent about, facts)
    "attention-only": ({"adapter.target_modules": ["q_proj", "v_proj"]}, {}, "attention layers only (q_proj, v_proj)",
                       {"adapter.target_modules": ["q_proj", "down_proj"]}, {}),
    "alpha-over-r": ({"adapter.r": 4, "adapter.lora_alpha": 33.0}, {}, "33 / r 4 = 8.25 is outside 0.25 to 8",
                     {"adapter.r": 4, "adapter.lora_alpha": 32.0}, {}),
    "high-rank": ({"adapter.r": 65, "adapter.lora_alpha": 65.0}, {}, "adapter.r is 65: above 64",
                  {"adapter.r": 64, "adapter.lora_alpha": 64.0}, {}),
    "low-rank": ({"adapter.r": 2, "adapter.lora_alpha": 4.0}, {}, "adapter.r is 2: fine for a style",
                 {"adapter.r": 3, "adapter.lora_alpha": 4.0}, {}),
    "capacity": ({}, {"trained": 1_000_000, "target_tokens": 2_000_001}, "2M target tokens, the adapter 1M parameters: "
                 "what does not fit is not learned; adapter.r: 33",
                 {}, {"trained": 1_000_000, "target_tokens": 1_000_000}),
    "dropout": ({"adapter.lora_dropout": 0.2}, {}, "adapter.lora_dropout is 0.2; 0.05 to 0.1",
                {"adapter.lora_dropout": 0.1}, {"rows": 9_999}),
    "starts-from-the-weight": ({"adapter.init_lora_weights": "pissa", "model.quantization": "stored"}, {},
                               "init_lora_weights pissa on stored", {"adapter.init_lora_weights": "pissa"}, {}),
    "loftq-base": ({"adapter.init_lora_weights": "loftq", "model.quantization": NF4}, {}, "this rounded base only",
                   {"model.quantization": NF4}, {}),
    "loraplus-rate": ({"adapter.loraplus_lr_ratio": 16.0, "train.learning_rate": 5e-4}, {}, "B learns 16 times faster",
                      {"adapter.loraplus_lr_ratio": 16.0, "train.learning_rate": 1e-4}, {}),
    "not-servable": ({"adapter.method": "dora"}, {}, "adapter.method dora: vLLM and llama.cpp take no such adapter",
                     {"adapter.method": "lora"}, {}),
    "whole-embedding": ({"adapter.modules_to_save": ["lm_head"]}, {"tied": True}, "the two come apart",
                        {"adapter.trainable_token_indices": [5]}, {"tied": True}),
    "prompt-on-small": ({"adapter.method": "prompt_tuning"}, {"parameters": 135 * 10**6}, "on 135M parameters: expect",
                        {"adapter.method": "prompt_tuning"}, {"parameters": 10**9}),
    "adalora-budget": ({"adapter.method": "adalora", "adapter.tinit": 60}, {"steps": 200}, "140 of the run's 200 steps",
                       {"adapter.method": "adalora"}, {"steps": 200}),
    "lora-rate": ({"train.learning_rate": 0.01}, {}, "train.learning_rate is 0.01: LoRA usually takes 1e-5 to 5e-3",
                  {"train.learning_rate": 5e-3}, {}),
    "full-rate": ({"adapter.method": "full", "train.learning_rate": 1e-3}, {}, "0.001: full tuning usually takes 1e-5",
                  {"adapter.method": "full", "train.learning_rate": 1e-4}, {}),
    "other-rate": ({"adapter.method": "vera", "train.learning_rate": 2e-4}, {}, "0.0002: vera wants about ten times",
                   {"adapter.method": "vera", "train.learning_rate": 2e-3}, {}),
    "rate-by-size": ({"train.learning_rate": 2e-3}, {"parameters": 8 * 10**9}, "at 8B parameters 0.0002 is usual",
                     {"train.learning_rate": 2e-3}, {"parameters": 135 * 10**6}),
    "short-run": ({}, {"steps": 99}, "the run has 99 optimizer steps", {}, {"steps": 100}),
    "warm-up": ({"train.warmup_steps": 0}, {}, "no warm-up", {"train.warmup_ratio": 0.1}, {}),
    "epochs": ({"train.epochs": 10.0}, {}, "train.epochs is 10: beyond 3",
               {"train.epochs": 10.0, "train.early_stopping_patience": 2}, {}),
    "large-batch": ({"train.batch_size": 129}, {}, "train.batch_size is 129: LoRA learns less",
                    {"train.batch_size": 128}, {"rows": 2560}),
    "weight-decay": ({"train.weight_decay": 0.1}, {}, "train.weight_decay is 0.1: on an adapter",
                     {"train.weight_decay": 0.01}, {}),
    "clipping": ({"train.max_grad_norm": None}, {}, "train.max_grad_norm is null", {"train.max_grad_norm": 0.3}, {}),
    "beta2": ({"train.adam_beta2": 0.9}, {}, "train.adam_beta2 is 0.9", {"train.adam_beta2": 0.95}, {}),
    "forgetting": ({"adapter.method": "full", "train.epochs": 4.0}, {}, "full tuning over 4 epochs forgets",
                   {"adapter.method": "full", "train.epochs": 3.0}, {}),
    "fp16-on-4bit": ({"model.compute_dtype": "fp16", "model.quantization": NF4}, {}, "fp16 on nf4 weights is unstable",
                     {"model.compute_dtype": "fp16"}, {}),
    "format-by-choice": ({"model.quantization": {"format": "fp4"}}, {}, "format is fp4: nf4 is more exact",
                         {"model.quantization": {"format": "int8"}}, {}),
    "nf4-details": ({"model.quantization": {**NF4, "double_quant": False}}, {}, "double_quant is false: 0.37 bits",
                    {"model.quantization": NF4}, {}),
    "small-in-4bit": ({"model.quantization": NF4}, {"parameters": 135 * 10**6}, "nf4 on 135M parameters saves at most "
                      "191.1 MiB", {"model.quantization": NF4}, {"parameters": 10**9}),
    "integer-target": ({"model.quantization": INT4}, {}, "int4 with method lora: a merge back",
                       {"model.quantization": NF4}, {}),
    "loss-on-prompts": ({"data.loss_on": "all", "data.format": "messages"}, {}, "data.loss_on is all",
                        {"data.loss_on": "all", "data.format": "text"}, {}),
    "long-prompts": ({}, {"tokens": 1000, "target_tokens": 50}, "95 % of the tokens are prompt",
                     {}, {"tokens": 1000, "target_tokens": 100}),
    "continued-pretraining": ({}, {"data_format": "text"}, "adapter.r is 16 on plain text",
                              {"adapter.r": 128, "adapter.use_rslora": True}, {"data_format": "text"}),
}  # fmt: skip


@pytest.mark.parametrize("objective", ["classification", "regression"])
@pytest.mark.parametrize("data", [{"data.text_template": "{text}"}, {"data.format": "text"}, {}])
def test_texts_that_are_labelled_are_no_knowledge_to_learn(objective, data):
    assert "continued-pretraining" not in said({"train.objective": objective, **data}, {"data_format": "text"})


def test_texts_made_of_columns_are_plain_text():
    assert "continued-pretraining" in said({"data.text_template": "{text}"}, {})


def recipe_of(settings: dict) -> object:
    values: dict = {"model": {"path": "m"}, "data": {"train": "t.jsonl"}, "output": "o"}
    for dots, value in settings.items():
        section, name = dots.split(".")
        values.setdefault(section, {})[name] = value
    return recipe_from_dict(values, check_files=False)


def said(settings: dict, facts: dict) -> dict[str, str]:
    return {guide.rule.id: str(guide) for guide in guides(RULES, recipe_of(settings), Facts(**facts))}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_speaks_where_it_should_and_is_silent_beside_it(rule):
    settings, facts, what, others, other_facts = CASES[rule.id]
    spoken = said(settings, facts)
    assert what in spoken[rule.id]
    assert spoken[rule.id].startswith(f"{rule.severity}: ")
    assert spoken[rule.id].endswith(f"({rule.source}) [guidance.silence: {rule.id}]")
    assert rule.id not in said(others, other_facts)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_is_silenced_by_its_id_and_no_other_is(rule):
    settings, facts, *_ = CASES[rule.id]
    loud, quiet = said(settings, facts), said({**settings, "guidance.silence": [rule.id]}, facts)
    assert set(loud) - set(quiet) == {rule.id}


def test_the_ids_of_the_table_and_of_the_setting_are_the_same():
    assert tuple(rule.id for rule in RULES) == get_args(RuleId)
    assert all(rule.summary.endswith(".") and rule.source for rule in RULES)


@pytest.mark.parametrize("facts", [Facts(), LARGE, Facts(rows=5_000, steps=900, tokens=10**6, trained=4 * 10**7)])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_defaults_are_not_spoken_of(method, facts):
    assert guides(RULES, recipe_of({"adapter.method": method}), facts) == []


def test_rules_that_ask_for_facts_are_said_once_they_are_known():
    recipe = recipe_of({"model.quantization": NF4, "train.epochs": 9.0})
    assert [line.split(":")[0] for line in warn(recipe)] == ["warning"]
    later = learned_since(recipe, SMALL)
    assert [guide.rule.id for guide in later] == ["small-in-4bit"]


def test_warnings_come_before_notes():
    recipe = recipe_of({"adapter.r": 1, "adapter.lora_alpha": 9.0, "train.weight_decay": 0.5})
    kinds = [guide.rule.severity for guide in guides(RULES, recipe, Facts(steps=5))]
    assert kinds == sorted(kinds, reverse=True)
    assert len(set(kinds)) == 2


def test_loading_says_them_and_an_unknown_id_gets_the_nearest(load, refused):
    _, notes = load("num_epochs: 10")
    assert [note for note in notes if note.startswith("warning: train.epochs is 10: beyond 3")]
    assert load("num_epochs: 10\nguidance: {silence: [epochs]}")[1] == [
        "num_epochs (r.yaml line 4) is read as train.epochs"
    ]
    [(what, where, fix)] = refused("guidance:\n  silence: [high-rang]\n")
    assert what.startswith("guidance.silence is [high-rang]; expected a list of these: attention-only,")
    assert (where, fix) == ("r.yaml line 5", "did you mean high-rank?")


def test_the_rate_of_a_file_in_other_words_is_spoken_of(load):
    _, notes = load("lr: 0.01")
    assert [note for note in notes if note.startswith("warning: train.learning_rate is 0.01")]
