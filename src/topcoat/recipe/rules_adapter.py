"""Rules about the adapter: which linears, how wide, how strong, from what start, and who can serve it."""

from __future__ import annotations

from collections.abc import Iterable

from topcoat.adapters.adalora_budget import FINAL_SHARE, INITIAL_SHARE
from topcoat.adapters.patterns import find_targets
from topcoat.adapters.settings import (
    AdaloraConfig,
    AdapterConfig,
    BesideConfig,
    Ia3Config,
    LoraConfig,
    MissConfig,
    PromptConfig,
    TargetedConfig,
    TokenRowsConfig,
    VeraConfig,
)
from topcoat.errors import TopcoatError
from topcoat.recipe.guidance import Facts
from topcoat.recipe.schema import Recipe
from topcoat.units import show_count

ATTENTION = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")),
    *("attention.query_key_value", "attention.dense", "attn.c_attn", "attn.c_proj"),
)
FEED_FORWARD = (
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "c_proj")),
    *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.experts.0.gate_proj", "mlp.experts.0.down_proj"),
)
"""Linears of a block, in the names of the architectures that are known."""
BLOCKS = [f"{blocks}.{at}" for blocks in ("model.layers", "gpt_neox.layers", "transformer.h") for at in range(64)]
HIGHEST_RANK = 256
HIGHEST_MISS = 2 * HIGHEST_RANK  # of one matrix where LoRA has two: as many parameters


def attention_only(recipe: Recipe, facts: Facts) -> str | None:
    """Adapt every linear, not those of the attention alone."""
    targets = recipe.adapter.target_modules if isinstance(recipe.adapter, TargetedConfig) else "all-linear"
    if targets == "all-linear" or not targets or not all(_in_attention(pattern) for pattern in targets):
        return None
    said = f"adapter.target_modules has attention layers only ({', '.join(targets)})"
    if isinstance(recipe.adapter, Ia3Config):
        return f"{said}; IA3 scales the feed-forward's inputs as well: add down_proj, in feedforward_modules too"
    return f"{said}; adapting all linears (all-linear) learns more, also at equal parameters"


def alpha_over_r(recipe: Recipe, facts: Facts) -> str | None:
    """Keep lora_alpha / r between 0.25 (QLoRA: r 64, alpha 16) and 8 (LoRA on GPT-2); in AdaLoRA, near 1 or 2."""
    adapter = recipe.adapter
    if isinstance(adapter, AdaloraConfig):
        name, r, least, most = "init_r", adapter.init_r, 0.5, 4.0
    elif isinstance(adapter, LoraConfig) and not adapter.use_rslora:
        name, r, least, most = "r", adapter.r, 0.25, 8.0
    else:
        return None
    ratio = adapter.lora_alpha / r
    if least <= ratio <= most:
        return None
    said = f"adapter.lora_alpha {adapter.lora_alpha:g} / {name} {r} = {ratio:.3g} is outside {least:g} to {most:g}"
    return f"{said}: the effective step scales with it; usual is lora_alpha = {name} or 2 {name}"


def high_rank(recipe: Recipe, facts: Facts) -> str | None:
    """Above r 64, divide by sqrt(r): use_rslora."""
    if isinstance(recipe.adapter, LoraConfig) and recipe.adapter.r > 64 and not recipe.adapter.use_rslora:
        return f"adapter.r is {recipe.adapter.r}: above 64 the update shrinks with 1/r; use_rslora: true keeps its size"
    return None


def low_rank(recipe: Recipe, facts: Facts) -> str | None:
    """r of 1 or 2 is enough for style and reinforcement learning, and weak for knowledge."""
    found = _rank(recipe.adapter)
    if found is None or found[1] > 2:
        return None
    usual = "64 is the default" if isinstance(recipe.adapter, MissConfig) else "8 to 32 is usual"
    return f"adapter.{found[0]} is {found[1]}: fine for a style, weak for knowledge; {usual}"


def capacity(recipe: Recipe, facts: Facts) -> str | None:
    """An adapter should have at least as many parameters as there are tokens to learn."""
    tokens, found = facts.target_tokens or facts.tokens, _rank(recipe.adapter)
    if found is None or not facts.trained or tokens is None:
        return None
    (name, r), held, at_the_end = found, facts.trained, ""
    if isinstance(recipe.adapter, AdaloraConfig):
        held, at_the_end = held * r // recipe.adapter.init_r, " in the end"
    if tokens <= held:
        return None
    kind = "target tokens" if facts.target_tokens else "tokens, prompts included"
    said = f"the data has about {show_count(tokens)} {kind}, the adapter {show_count(held)} parameters{at_the_end}"
    need, most = -(-r * tokens // held), HIGHEST_MISS if isinstance(recipe.adapter, MissConfig) else HIGHEST_RANK
    if need > most:
        return f"{said}: what does not fit is not learned; no rank up to {most} holds it, full tuning might"
    return f"{said}: what does not fit is not learned; adapter.{name}: {need} has as many"


def dropout(recipe: Recipe, facts: Facts) -> str | None:
    """Dropout is for small data that is learned by heart: 0.05 to 0.1 there, else none."""
    adapter = recipe.adapter
    if isinstance(adapter, LoraConfig | AdaloraConfig):
        name, rate = "lora_dropout", adapter.lora_dropout
    elif isinstance(adapter, MissConfig):
        name, rate = "miss_dropout", adapter.miss_dropout
    elif isinstance(adapter, VeraConfig):
        name, rate = "vera_dropout", adapter.vera_dropout
    else:
        return None
    if rate > 0.1:
        return f"adapter.{name} is {rate:g}; 0.05 to 0.1 is as much as helps"
    if rate > 0 and (facts.rows or 0) >= 10_000:
        return f"adapter.{name} is {rate:g} on {facts.rows:,} rows: it slows each step and helps small data only"
    return None


def starts_from_the_weight(recipe: Recipe, facts: Facts) -> str | None:
    """PiSSA and OLoRA take their start out of the weight: give them a base that is not rounded."""
    start = recipe.adapter.init_lora_weights if isinstance(recipe.adapter, LoraConfig) else True
    quantization = recipe.model.quantization
    if isinstance(start, str) and start.startswith(("pissa", "olora")) and _rounds(recipe) and quantization:
        return (
            f"adapter.init_lora_weights {start} on {quantization.format} weights takes its directions from rounded "
            "numbers; it is meant for a float base, and loftq for a rounded one"
        )
    return None


def loftq_base(recipe: Recipe, facts: Facts) -> str | None:
    """A LoftQ adapter belongs to its rounded base: serve it there, and merge it into no other."""
    if isinstance(recipe.adapter, LoraConfig) and recipe.adapter.init_lora_weights == "loftq" and _rounds(recipe):
        return "adapter.init_lora_weights loftq: the adapter means something on this rounded base only; serve it there"
    return None


def loraplus_rate(recipe: Recipe, facts: Facts) -> str | None:
    """LoRA+ multiplies the rate of B: write a lower learning rate, and a ratio near 16."""
    ratio = recipe.adapter.loraplus_lr_ratio if isinstance(recipe.adapter, LoraConfig) else None
    rate = recipe.train.learning_rate
    if ratio is None or ratio < 4:
        return None
    if ratio > 32:
        return f"adapter.loraplus_lr_ratio is {ratio:g}; 16 is the paper's"
    if rate != "auto" and rate > 3e-4:
        return f"adapter.loraplus_lr_ratio {ratio:g} at learning_rate {rate}: B learns {ratio:g} times faster; lower it"
    return None


def not_servable(recipe: Recipe, facts: Facts) -> str | None:
    """vLLM and llama.cpp take plain LoRA of one rank: topcoat export makes one of LoRA's kin, the rest need a merge."""
    adapter = recipe.adapter
    if adapter.method in ("adalora", "iec", "miss"):
        return f"adapter.method {adapter.method}: vLLM and llama.cpp take only the LoRA that topcoat export writes"
    if adapter.method in ("dora", "vera", "ia3"):
        slower = ", and it is slower than LoRA" if adapter.method == "dora" else ""
        return f"adapter.method {adapter.method}: vLLM and llama.cpp take no such adapter; merge to serve it{slower}"
    if isinstance(adapter, PromptConfig):
        return f"adapter.method {adapter.method}: no merge, and vLLM and llama.cpp take no such adapter; PEFT does"
    if isinstance(adapter, TargetedConfig) and adapter.modules_to_save:
        named = ", ".join(adapter.modules_to_save)
        return f"adapter.modules_to_save ({named}): vLLM and llama.cpp refuse such an adapter; merge to serve it"
    if isinstance(adapter, LoraConfig) and (adapter.rank_pattern or adapter.alpha_pattern):
        said = "adapter.rank_pattern and alpha_pattern: vLLM ignores them and computes otherwise"
        return f"{said}; topcoat export --to peft writes one rank and one scale that compute the same"
    return None


def prompt_on_small(recipe: Recipe, facts: Facts) -> str | None:
    """Prompt tuning reaches full tuning near 11B parameters, and falls far behind LoRA below 1B."""
    method = recipe.adapter.method
    if method not in ("prompt_tuning", "p_tuning") or facts.parameters is None or facts.parameters >= 10**9:
        return None
    size = show_count(facts.parameters)
    return f"adapter.method {method} on {size} parameters: expect far less than LoRA learns; p_tuning_v2 reaches deeper"


def whole_embedding(recipe: Recipe, facts: Facts) -> str | None:
    """New tokens need rows of their own, not the whole embedding: trainable_token_indices keeps a tied head tied."""
    saved = recipe.adapter.modules_to_save if isinstance(recipe.adapter, BesideConfig) else []
    named = [name for name in saved if name.rpartition(".")[2] in ("embed_tokens", "wte", "lm_head")]
    if not named:
        return None
    tie = ", and the two come apart in a model that ties them" if facts.tied else ""
    rows = "; trainable_token_indices trains the new rows" if isinstance(recipe.adapter, TokenRowsConfig) else ""
    return f"adapter.modules_to_save trains {', '.join(named)} whole{tie}{rows}"


def adalora_budget(recipe: Recipe, facts: Facts) -> str | None:
    """AdaLoRA's first and last spans, in which ranks stay as they are, together at most half of the run."""
    adapter, total = recipe.adapter, facts.steps
    if not isinstance(adapter, AdaloraConfig) or total is None:
        return None
    first = INITIAL_SHARE * total if adapter.tinit is None else adapter.tinit
    last = FINAL_SHARE * total if adapter.tfinal is None else adapter.tfinal
    if first + last <= total / 2:
        return None
    said = f"adapter.tinit and tfinal are {first + last:.0f} of the run's {total} steps together"
    return f"{said}: ranks move in less than half of it"


def _in_attention(pattern: str) -> bool:
    """`pattern` names linears of the attention, and none of the feed-forward."""
    return _names(pattern, ATTENTION) and not _names(pattern, FEED_FORWARD)


def _names(pattern: str, linears: Iterable[str]) -> bool:
    """Whether `pattern`, as target_modules has it, means some of `linears` in some block."""
    try:
        find_targets([f"{block}.{linear}" for block in BLOCKS for linear in linears], [pattern])
    except TopcoatError:  # it matches none
        return False
    return True


def _rank(adapter: AdapterConfig) -> tuple[str, int] | None:
    """The setting that says how wide a low-rank update is, and what it says; None for other methods."""
    if isinstance(adapter, LoraConfig | MissConfig):
        return "r", adapter.r
    return ("target_r", adapter.target_r) if isinstance(adapter, AdaloraConfig) else None


def _rounds(recipe: Recipe) -> bool:
    """The frozen weights are rounded to a number format."""
    quantization = recipe.model.quantization
    return quantization is not None and quantization.format not in ("bf16", "fp16", "fp32")
