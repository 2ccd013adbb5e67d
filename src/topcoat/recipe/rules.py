"""RULES: every rule of the guidance, with its source. Settings the run does as asked, that are known to go badly.

Sources without a number here: "LoRA Without Regret" is Thinking Machines, September 2025; the Unsloth guide is that
project's page on LoRA hyperparameters.
"""

from __future__ import annotations

from topcoat.recipe import rules_adapter as adapter
from topcoat.recipe import rules_model as model
from topcoat.recipe import rules_training as training
from topcoat.recipe.guidance import Facts, Guide, Rule, guides
from topcoat.recipe.schema import Recipe

_QLORA, _REGRET, _BIDERMAN = "QLoRA, arXiv:2305.14314", "LoRA Without Regret", "Biderman et al., arXiv:2405.09673"
_UNSLOTH = "Unsloth guide"

RULES: tuple[Rule, ...] = (
    Rule("attention-only", "warning", f"{_QLORA}; {_REGRET}", adapter.attention_only),
    Rule("alpha-over-r", "warning", "LoRA, arXiv:2106.09685; QLoRA; PEFT's benchmark", adapter.alpha_over_r),
    Rule("high-rank", "warning", "rsLoRA, arXiv:2312.03732", adapter.high_rank),
    Rule("low-rank", "note", _REGRET, adapter.low_rank),
    Rule("capacity", "warning", _REGRET, adapter.capacity),
    Rule("dropout", "note", f"{_UNSLOTH}; QLoRA", adapter.dropout),
    Rule("starts-from-the-weight", "warning", "PiSSA, arXiv:2404.02948", adapter.starts_from_the_weight),
    Rule("loftq-base", "note", "LoftQ, arXiv:2310.08659", adapter.loftq_base),
    Rule("loraplus-rate", "warning", "LoRA+, arXiv:2402.12354", adapter.loraplus_rate),
    Rule("not-servable", "note", "vLLM's and llama.cpp's adapter readers", adapter.not_servable),
    Rule("whole-embedding", "note", "PEFT documentation", adapter.whole_embedding),
    Rule("adalora-budget", "warning", "AdaLoRA, arXiv:2303.10512", adapter.adalora_budget),
    Rule("prompt-on-small", "warning", "Lester et al., arXiv:2104.08691", adapter.prompt_on_small),
    Rule("lora-rate", "warning", f"QLoRA; {_UNSLOTH}", training.lora_rate),
    Rule("full-rate", "warning", f"TRL documentation; {_REGRET}", training.full_rate),
    Rule("other-rate", "warning", "VeRA, arXiv:2310.11454; PEFT's benchmark", training.other_rate),
    Rule("rate-by-size", "note", f"QLoRA, table 9; {_REGRET}", training.rate_by_size),
    Rule("short-run", "note", _REGRET, training.short_run),
    Rule("warm-up", "note", f"QLoRA; {_UNSLOTH}", training.warm_up),
    Rule("epochs", "warning", f"{_UNSLOTH}; Lightning AI's LoRA study", training.epochs),
    Rule("large-batch", "warning", _REGRET, training.large_batch),
    Rule("weight-decay", "warning", _UNSLOTH, training.weight_decay),
    Rule("clipping", "note", "QLoRA", training.clipping),
    Rule("beta2", "note", "QLoRA", training.beta2),
    Rule("forgetting", "warning", _BIDERMAN, training.forgetting),
    Rule("fp16-on-4bit", "warning", _QLORA, model.fp16_on_4bit),
    Rule("format-by-choice", "note", "QLoRA, table 2", model.format_by_choice),
    Rule("nf4-details", "note", _QLORA, model.nf4_details),
    Rule("small-in-4bit", "warning", "low-bit Llama 3 study, arXiv:2404.14047", model.small_in_4bit),
    Rule("integer-target", "note", "QA-LoRA, arXiv:2309.14717", model.integer_target),
    Rule("loss-on-prompts", "note", _QLORA, model.loss_on_prompts),
    Rule("long-prompts", "note", "QLoRA", model.long_prompts),
    Rule("continued-pretraining", "note", _BIDERMAN, model.continued_pretraining),
)


def warn(recipe: Recipe) -> list[str]:
    """What can be said of `recipe` alone, each line starting with "warning: " or "note: "."""
    return [str(guide) for guide in guides(RULES, recipe, Facts())]


def learned_since(recipe: Recipe, facts: Facts) -> list[Guide]:
    """What can be said only since `facts` are known: the rules that say nothing of the recipe alone."""
    said = {guide.rule.id for guide in guides(RULES, recipe, Facts())}
    return [guide for guide in guides(RULES, recipe, facts) if guide.rule.id not in said]
