"""Rules about the loop: learning rates, length of the run, batch, decay, clipping."""

from __future__ import annotations

from topcoat.adapters.settings import AdaloraConfig, FullConfig, LoraConfig, MissConfig
from topcoat.recipe.guidance import Facts
from topcoat.recipe.schema import Recipe
from topcoat.training.schedule import FAST, default_learning_rate
from topcoat.units import show_count

LOW_RANK = LoraConfig | AdaloraConfig | MissConfig


def _takes_lora_rates(recipe: Recipe) -> bool:
    return isinstance(recipe.adapter, LOW_RANK) and recipe.adapter.method not in FAST


def _named(recipe: Recipe) -> str:
    return "LoRA" if isinstance(recipe.adapter, LoraConfig) else recipe.adapter.method


def lora_rate(recipe: Recipe, facts: Facts) -> str | None:
    """LoRA takes 1e-5 to 5e-3."""
    rate = recipe.train.learning_rate
    if isinstance(rate, str) or not _takes_lora_rates(recipe) or 1e-5 <= rate <= 5e-3:
        return None
    named = _named(recipe)
    return f"train.learning_rate is {rate:g}: {named} usually takes 1e-5 to 5e-3; auto goes by the model's size"


def full_rate(recipe: Recipe, facts: Facts) -> str | None:
    """Full tuning takes a tenth of a LoRA rate: 1e-5 to 2e-5 at 7B, at most 1e-4."""
    rate = recipe.train.learning_rate
    if not isinstance(recipe.adapter, FullConfig) or isinstance(rate, str) or rate <= 1e-4:
        return None
    return f"train.learning_rate is {rate:g}: full tuning usually takes 1e-5 to 2e-5, a tenth of a LoRA rate"


def other_rate(recipe: Recipe, facts: Facts) -> str | None:
    """VeRA, IA3, QA-LoRA and prompt methods want about ten times LoRA's rate, 1e-3 to 1e-1."""
    rate, method = recipe.train.learning_rate, recipe.adapter.method
    if method not in FAST or isinstance(rate, str) or 1e-3 <= rate <= 1e-1:
        return None
    if rate > 1e-1:
        return f"train.learning_rate is {rate:g}: above 1e-1 {method} goes astray under AdamW; 1e-3 to 1e-1 is usual"
    return f"train.learning_rate is {rate:g}: {method} wants about ten times a LoRA rate, 1e-3 or more"


def rate_by_size(recipe: Recipe, facts: Facts) -> str | None:
    """A LoRA rate far from the usual one of the model's size is worth a second look."""
    rate = recipe.train.learning_rate
    if isinstance(rate, str) or not _takes_lora_rates(recipe) or not facts.parameters:
        return None
    usual = default_learning_rate(recipe.adapter, facts.parameters)
    if usual / 10 <= rate <= usual * 5:
        return None
    size, named = show_count(facts.parameters), _named(recipe)
    return f"train.learning_rate is {rate:g}: at {size} parameters {usual:g} is usual for {named}; topcoat tune tries"


def short_run(recipe: Recipe, facts: Facts) -> str | None:
    """Fewer than 100 optimizer steps are few; LoRA may take half again the rate there."""
    if facts.steps is None or facts.steps >= 100:
        return None
    train = recipe.train
    batch = "train.batch_size" if train.batch_tokens is None else "train.batch_tokens"
    more = "a higher train.max_steps gives" if train.max_steps is not None else f"more epochs or a lower {batch} give"
    higher = "; so short a LoRA run may take half again the rate" if isinstance(recipe.adapter, LoraConfig) else ""
    return f"the run has {facts.steps} optimizer steps, fewer than 100: {more} it more{higher}"


def warm_up(recipe: Recipe, facts: Facts) -> str | None:
    """A short warm-up, 3 % of the steps, before the rate falls."""
    train = recipe.train
    if train.warmup_steps is None and train.warmup_ratio > 0.2:
        return f"train.warmup_ratio is {train.warmup_ratio:g}: a fifth of the run and more is spent below its rate"
    none = train.warmup_steps == 0 or (train.warmup_steps is None and train.warmup_ratio == 0)
    if none and train.lr_scheduler_type != "constant":
        return "no warm-up: 3 % of the steps (warmup_ratio: 0.03) keep the first ones from going astray"
    return None


def epochs(recipe: Recipe, facts: Facts) -> str | None:
    """One to three epochs; more mostly learns the rows by heart."""
    train = recipe.train
    if train.epochs > 3 and train.max_steps is None and not train.early_stopping_patience:
        return f"train.epochs is {train.epochs:g}: beyond 3, watch the validation loss or set early_stopping_patience"
    return None


def large_batch(recipe: Recipe, facts: Facts) -> str | None:
    """LoRA loses more than full tuning from large batches: at most 128, and a twentieth of the rows."""
    batch = recipe.train.batch_size
    if recipe.train.batch_tokens is not None or isinstance(recipe.adapter, FullConfig):
        return None
    if batch > 128:
        return f"train.batch_size is {batch}: LoRA learns less from batches above 128"
    if facts.rows and batch > max(1, facts.rows // 20):
        return f"train.batch_size is {batch} of {facts.rows:,} rows: more than a twentieth, so an epoch has few steps"
    return None


def weight_decay(recipe: Recipe, facts: Facts) -> str | None:
    """At most 0.01 on an adapter, where decay pulls the update back to the base."""
    decay = recipe.train.weight_decay
    if decay > 0.01 and not isinstance(recipe.adapter, FullConfig):
        return f"train.weight_decay is {decay:g}: on an adapter it pulls the update back to the base; 0.01 is the most"
    return None


def clipping(recipe: Recipe, facts: Facts) -> str | None:
    """Clip the gradient's norm at 0.3 (QLoRA) to 1."""
    norm = recipe.train.max_grad_norm
    if norm is None or norm > 1:
        return (
            f"train.max_grad_norm is {'null' if norm is None else f'{norm:g}'}: one bad batch may undo many; 0.3 to 1"
        )
    return None


def beta2(recipe: Recipe, facts: Facts) -> str | None:
    """Adam's second decay at 0.999; 0.95 is the lowest in common use."""
    value = recipe.train.adam_beta2
    if value < 0.95:
        return f"train.adam_beta2 is {value:g}: the step's scale follows single batches; 0.999 is usual"
    return None


def forgetting(recipe: Recipe, facts: Facts) -> str | None:
    """Full tuning forgets more than LoRA: not more than three epochs."""
    if isinstance(recipe.adapter, FullConfig) and recipe.train.epochs > 3 and recipe.train.max_steps is None:
        return (
            f"full tuning over {recipe.train.epochs:g} epochs forgets what the base could do; one or two, or LoRA, "
            "forget less"
        )
    return None
