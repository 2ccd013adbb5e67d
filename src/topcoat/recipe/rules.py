"""Warnings: settings the run does as asked, that papers and practice found to go badly. One function, one rule."""

from __future__ import annotations

from collections.abc import Callable

from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.recipe.schema import Recipe

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn"}


def attention_only(recipe: Recipe) -> str | None:
    """QLoRA, section 4; Biderman et al. 2024 (arXiv:2405.09673): every linear should be adapted."""
    targets = recipe.adapter.target_modules if isinstance(recipe.adapter, LoraConfig) else "all-linear"
    if isinstance(targets, list) and targets and set(targets) <= ATTENTION:
        return "adapter.target_modules has attention layers only; adapting all linears (all-linear) learns more"
    return None


def alpha_over_r(recipe: Recipe) -> str | None:
    """Working points of the papers: 0.25 (QLoRA, r 64, alpha 16) to 8 (LoRA on GPT-2)."""
    if not isinstance(recipe.adapter, LoraConfig) or recipe.adapter.use_rslora:
        return None
    ratio = recipe.adapter.lora_alpha / recipe.adapter.r
    if 0.25 <= ratio <= 8:
        return None
    said = f"adapter.lora_alpha {recipe.adapter.lora_alpha:g} / r {recipe.adapter.r} = {ratio:.3g} is outside 0.25 to 8"
    return f"{said}: the effective step scales with it; usual is lora_alpha = r or 2 r"


def high_rank(recipe: Recipe) -> str | None:
    """rsLoRA (arXiv:2312.03732): lora_alpha / r makes high ranks slow."""
    if isinstance(recipe.adapter, LoraConfig) and recipe.adapter.r > 64 and not recipe.adapter.use_rslora:
        return f"adapter.r is {recipe.adapter.r}: above 64 the update shrinks with 1/r; use_rslora: true keeps its size"
    return None


def learning_rate(recipe: Recipe) -> str | None:
    """The usual range of LoRA is 1e-5 to 5e-3; full tuning takes about a tenth of a LoRA rate."""
    rate = recipe.train.learning_rate
    if isinstance(rate, str):
        return None
    if isinstance(recipe.adapter, FullConfig) and rate > 1e-4:
        return f"train.learning_rate is {rate:g}: full tuning usually takes 1e-5 to 2e-5, a tenth of a LoRA rate"
    if isinstance(recipe.adapter, LoraConfig) and not 1e-5 <= rate <= 5e-3:
        return f"train.learning_rate is {rate:g}: LoRA usually takes 1e-5 to 5e-3; auto goes by the model's size"
    return None


def many_epochs(recipe: Recipe) -> str | None:
    """More than three passes mostly memorise."""
    train = recipe.train
    if train.epochs > 3 and train.max_steps is None and not train.early_stopping_patience:
        return f"train.epochs is {train.epochs:g}: beyond 3, watch the validation loss or set early_stopping_patience"
    return None


def large_batch(recipe: Recipe) -> str | None:
    """LoRA tolerates large batches less than full tuning does (Thinking Machines 2025, "LoRA Without Regret")."""
    if recipe.train.batch_tokens is None and recipe.train.batch_size > 128:
        return f"train.batch_size is {recipe.train.batch_size}: LoRA learns less from batches above 128"
    return None


def half_precision_on_4bit(recipe: Recipe) -> str | None:
    """QLoRA saw about one fp16 run in five diverge."""
    quantization = recipe.model.quantization
    if recipe.model.compute_dtype == "fp16" and quantization is not None and quantization.format == "nf4":
        return "model.compute_dtype fp16 on nf4 weights is unstable in about one run of five; bf16 or fp32 is safer"
    return None


RULES: tuple[Callable[[Recipe], str | None], ...] = (
    attention_only,
    alpha_over_r,
    high_rank,
    learning_rate,
    many_epochs,
    large_batch,
    half_precision_on_4bit,
)


def warn(recipe: Recipe) -> list[str]:
    """Every warning about `recipe`, each starting with "warning: "."""
    return [f"warning: {said}" for rule in RULES if (said := rule(recipe))]
