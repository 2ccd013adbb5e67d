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


ALSO = {  # what else a rule speaks of: (id, settings, facts, what it says)
    "names with their parent": ("attention-only", {"adapter.target_modules": ["self_attn.q_proj", "self_attn.v_proj"]},
                                {}, "attention layers only (self_attn.q_proj, self_attn.v_proj); adapting all"),
    "expressions": ("attention-only", {"adapter.target_modules": [r".*layers\.[0-9]+\.self_attn\..*"]}, {},
                    "attention layers only"),
    "a whole path": ("attention-only", {"adapter.target_modules": ["model.layers.7.self_attn.o_proj"]}, {},
                     "attention layers only"),
    "the attention of adalora": ("attention-only", {"adapter.method": "adalora", "adapter.target_modules": ["q_proj"]},
                                 {}, "attention layers only (q_proj); adapting all linears"),
    "the attention of miss": ("attention-only", {"adapter.method": "miss", "adapter.target_modules": ["qkv_proj"]},
                              {}, "attention layers only (qkv_proj); adapting all linears"),
    "the attention of vera": ("attention-only", {"adapter.method": "vera", "adapter.target_modules": ["v_proj"]},
                              {}, "attention layers only (v_proj); adapting all linears"),
    "the attention of ia3": ("attention-only", {"adapter.method": "ia3", "adapter.target_modules": ["k_proj", "v_proj"],
                             "adapter.feedforward_modules": []}, {},
                             "(k_proj, v_proj); IA3 scales the feed-forward's inputs as well: add down_proj"),
    "alpha of adalora": ("alpha-over-r", {"adapter.method": "adalora", "adapter.init_r": 64, "adapter.lora_alpha": 8.0},
                         {}, "lora_alpha 8 / init_r 64 = 0.125 is outside 0.5 to 4: the effective step scales with it; "
                         "usual is lora_alpha = init_r or 2 init_r"),
    "a low adalora": ("low-rank", {"adapter.method": "adalora", "adapter.target_r": 2}, {}, "adapter.target_r is 2: "
                      "fine for a style, weak for knowledge; 8 to 32 is usual"),
    "a low miss": ("low-rank", {"adapter.method": "miss", "adapter.r": 1}, {}, "adapter.r is 1: fine for a style, weak "
                   "for knowledge; 64 is the default"),
    "what adalora holds": ("capacity", {"adapter.method": "adalora"}, {"trained": 1_200_000, "target_tokens": 900_000},
                           "the adapter 800k parameters in the end: what does not fit is not learned; "
                           "adapter.target_r: 9 has"),
    "what miss holds": ("capacity", {"adapter.method": "miss"}, {"trained": 10**6, "target_tokens": 7_000_000},
                        "adapter.r: 448 has as many"),
    "what no miss holds": ("capacity", {"adapter.method": "miss"}, {"trained": 10**6, "target_tokens": 9_000_000},
                           "no rank up to 512 holds it"),
    "dropout of adalora": ("dropout", {"adapter.method": "adalora", "adapter.lora_dropout": 0.3}, {},
                           "adapter.lora_dropout is 0.3"),
    "dropout of miss": ("dropout", {"adapter.method": "miss", "adapter.miss_dropout": 0.2}, {},
                        "adapter.miss_dropout is 0.2; 0.05 to 0.1"),
    "dropout of vera": ("dropout", {"adapter.method": "vera", "adapter.vera_dropout": 0.05}, {"rows": 10_000},
                        "adapter.vera_dropout is 0.05 on 10,000 rows"),
    "the rate of adalora": ("lora-rate", {"adapter.method": "adalora", "train.learning_rate": 0.02}, {},
                            "0.02: adalora usually takes 1e-5 to 5e-3"),
    "the rate of miss": ("lora-rate", {"adapter.method": "miss", "train.learning_rate": 1e-6}, {},
                         "1e-06: miss usually takes 1e-5 to 5e-3"),
    "the rate of dora at 8B": ("rate-by-size", {"adapter.method": "dora", "train.learning_rate": 2e-3},
                               {"parameters": 8 * 10**9}, "at 8B parameters 0.0002 is usual"),
    "a vera astray": ("other-rate", {"adapter.method": "vera", "train.learning_rate": 0.2}, {},
                      "0.2: above 1e-1 vera goes astray under AdamW; 1e-3 to 1e-1 is usual"),
    "a prompt astray": ("other-rate", {"adapter.method": "prompt_tuning", "train.learning_rate": 0.3}, {},
                        "0.3: above 1e-1 prompt_tuning goes astray"),
    "patterns": ("not-servable", {"adapter.rank_pattern": {"q_proj": 8}}, {}, "vLLM ignores them and computes "
                 "otherwise; topcoat export --to peft writes one rank and one scale that compute the same"),
    "fp16 on gptq": ("fp16-on-4bit", {"model.compute_dtype": "fp16", "model.quantization": {"format": "gptq"}}, {},
                     "fp16 on 4-bit gptq weights is unstable"),
    "fp16 on gguf": ("fp16-on-4bit", {"model.compute_dtype": "fp16",
                     "model.quantization": {"format": "gguf", "type": "Q4_0"}}, {}, "fp16 on gguf Q4_0 weights"),
    "fp16 on stored": ("fp16-on-4bit", {"model.compute_dtype": "fp16", "model.quantization": "stored"},
                       {"weight_bits": 4.19}, "fp16 on stored (4.2 bits each) weights is unstable"),
    "gptq by choice": ("format-by-choice", {"model.quantization": {"format": "gptq"}}, {},
                       "format is 4-bit gptq: nf4 is more exact at its size"),
    "few bits by choice": ("format-by-choice",
                           {"model.quantization": {"format": "gptq", "bits": 3, "rounding": "gptq"}},
                           {}, "format is 3-bit gptq: fewer bits cost quality"),
    "gguf by choice": ("format-by-choice", {"model.quantization": {"format": "gguf", "type": "Q4_1"}}, {},
                       "format is gguf Q4_1: nf4 is more exact"),
    "a small int2": ("small-in-4bit", {"model.quantization": {"format": "int2"}}, {"parameters": 10**8},
                     "int2 on 100M parameters saves at most 155.0 MiB"),
    "a small gptq": ("small-in-4bit", {"model.quantization": {"format": "gptq"}}, {"parameters": 10**8},
                     "4-bit gptq on 100M parameters saves at most"),
    "a small gguf file": ("small-in-4bit", {"model.quantization": {"format": "gguf"}},
                          {"parameters": 10**8, "weight_bits": 4.8}, "gguf (4.8 bits each) on 100M parameters costs "
                          "more quality than on a large model; load what it was made from, dense or in int8"),
    "a small plugin": ("small-in-4bit", {"model.quantization": {"format": "plugin", "name": "ternary"}},
                       {"parameters": 10**8, "weight_bits": 2.0}, "ternary (2.0 bits each) on 100M parameters saves at "
                       "most 166.9 MiB"),
}  # fmt: skip
BESIDE = {  # what a rule is silent about
    "a list of both": ("attention-only", {"adapter.target_modules": [r".*self_attn\..*", "mlp.up_proj"]}, {}),
    "an expression of both": ("attention-only", {"adapter.target_modules": [r".*_proj"]}, {}),
    "a name of both": ("attention-only", {"adapter.target_modules": ["c_proj"]}, {}),
    "names that are not known": ("attention-only", {"adapter.target_modules": ["q_proj", "mixer.in_proj"]}, {}),
    "ia3 as it is": ("attention-only", {"adapter.method": "ia3"}, {}),
    "adalora as it is": ("alpha-over-r", {"adapter.method": "adalora"}, {}),
    "alpha of rslora": ("alpha-over-r", {"adapter.use_rslora": True, "adapter.lora_alpha": 200.0}, {}),
    "adalora that holds it": ("capacity", {"adapter.method": "adalora"}, {"trained": 12 * 10**5,
                              "target_tokens": 8 * 10**5}),
    "a vera is small on purpose": ("capacity", {"adapter.method": "vera"}, {"trained": 10, "target_tokens": 10**6}),
    "the rank of vera": ("low-rank", {"adapter.method": "vera", "adapter.r": 2}, {}),
    "the highest rate": ("other-rate", {"adapter.method": "ia3", "train.learning_rate": 0.1}, {}),
    "gptq of 8 bits": ("fp16-on-4bit", {"model.compute_dtype": "fp16",
                       "model.quantization": {"format": "gptq", "bits": 8}}, {}),
    "gguf of 5 bits": ("fp16-on-4bit", {"model.compute_dtype": "fp16",
                       "model.quantization": {"format": "gguf", "type": "Q5_0"}}, {"weight_bits": 4.0}),
    "a stored format not known": ("fp16-on-4bit", {"model.compute_dtype": "fp16", "model.quantization": "stored"}, {}),
    "a stored one of 5 bits": ("fp16-on-4bit", {"model.compute_dtype": "fp16", "model.quantization": "stored"},
                               {"weight_bits": 5.5}),
    "a calibrated gptq": ("format-by-choice", {"model.quantization": {"format": "gptq", "rounding": "gptq"}}, {}),
    "a stored format": ("format-by-choice", {"model.quantization": "stored"}, {"weight_bits": 4.2}),
    "a checkpoint of stored numbers": ("small-in-4bit", {"model.quantization": "stored"},
                                       {"parameters": 10**8, "weight_bits": 16.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", ALSO.values(), ids=ALSO.keys())
def test_a_rule_speaks_of_what_else_it_means(case):
    rule, settings, facts, what = case
    assert what in said(settings, facts)[rule]


@pytest.mark.parametrize("case", BESIDE.values(), ids=BESIDE.keys())
def test_a_rule_is_silent_about_what_it_does_not_mean(case):
    rule, settings, facts = case
    assert rule not in said(settings, facts)


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


@pytest.mark.parametrize(
    ("settings", "longer"),
    [
        ({}, "more epochs or a lower train.batch_size give it more; so short a LoRA run may take half again the rate"),
        ({"train.batch_tokens": 4096}, "more epochs or a lower train.batch_tokens give it more; so short"),
        ({"train.max_steps": 9}, "a higher train.max_steps gives it more; so short a LoRA run"),
        ({"adapter.method": "full"}, "train.batch_size give it more (LoRA Without Regret"),
    ],
)
def test_a_short_run_is_told_what_makes_it_longer(settings, longer):
    assert "the run has 9 optimizer steps, fewer than 100: " in said(settings, {"steps": 9})["short-run"]
    assert longer in said(settings, {"steps": 9})["short-run"]


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
