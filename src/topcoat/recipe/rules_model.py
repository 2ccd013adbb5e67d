"""Rules about the base and the data: number formats, dtypes, which tokens are trained."""

from __future__ import annotations

from topcoat.adapters.settings import LoraConfig
from topcoat.quant.settings import IntConfig, Nf4Config
from topcoat.recipe.guidance import Facts
from topcoat.recipe.schema import Recipe
from topcoat.units import show_bytes, show_count, show_percent

SMALL = 1_000_000_000  # parameters
FOUR_BITS = ("nf4", "nf4-icq", "fp4", "int4", "int3", "int2")
SAVED_BYTES = 2 - 0.516  # of a weight that is nf4 instead of bf16


def fp16_on_4bit(recipe: Recipe, facts: Facts) -> str | None:
    """Compute in bf16 or fp32 on 4-bit weights: about one fp16 run in five diverges."""
    quantization = recipe.model.quantization
    if recipe.model.compute_dtype == "fp16" and quantization is not None and quantization.format in FOUR_BITS:
        said = f"model.compute_dtype fp16 on {quantization.format} weights is unstable in about one run of five"
        return f"{said}; bf16 or fp32 is safer"
    return None


def format_by_choice(recipe: Recipe, facts: Facts) -> str | None:
    """nf4 is the most exact 4-bit format without calibration; fp4 and integers have other reasons."""
    quantization = recipe.model.quantization
    if quantization is None or quantization.format not in ("fp4", "int4", "int3", "int2"):
        return None
    if recipe.adapter.method == "qalora":  # it merges into integers: they are what it is for
        return None
    worse = "fewer bits cost quality" if quantization.format in ("int2", "int3") else "nf4 is more exact at its size"
    return f"model.quantization.format is {quantization.format}: {worse}; topcoat quantize --report measures both"


def nf4_details(recipe: Recipe, facts: Facts) -> str | None:
    """nf4 with blocks of 64 and double quantization, as in the paper."""
    quantization = recipe.model.quantization
    if not isinstance(quantization, Nf4Config):
        return None
    if quantization.block_size > 64:
        return f"model.quantization.block_size is {quantization.block_size}: above 64 one outlier coarsens more weights"
    if not quantization.double_quant:
        return "model.quantization.double_quant is false: 0.37 bits more a weight, for no quality that was found"
    return None


def small_in_4bit(recipe: Recipe, facts: Facts) -> str | None:
    """Below 1B parameters 4-bit weights save little memory and cost more quality: int8, or dense."""
    quantization = recipe.model.quantization
    if quantization is None or quantization.format not in FOUR_BITS or not facts.parameters:
        return None
    if facts.parameters >= SMALL:
        return None
    saved = show_bytes(SAVED_BYTES * facts.parameters)
    return (
        f"model.quantization.format {quantization.format} on {show_count(facts.parameters)} parameters saves at most "
        f"{saved} and costs more quality than on a large model; int8, or null for dense weights"
    )


def integer_target(recipe: Recipe, facts: Facts) -> str | None:
    """A base that will be served in 4-bit integers: QA-LoRA merges into them exactly, plain LoRA does not."""
    if isinstance(recipe.model.quantization, IntConfig) and type(recipe.adapter) is LoraConfig:
        return (
            f"model.quantization.format {recipe.model.quantization.format} with method lora: a merge back into the "
            "integers rounds again; method qalora merges into them exactly"
        )
    return None


def loss_on_prompts(recipe: Recipe, facts: Facts) -> str | None:
    """Train on the answers only."""
    if recipe.data.loss_on == "all" and recipe.data.format not in ("auto", "text") and not recipe.data.text_template:
        return "data.loss_on is all: the prompts are learned as well; loss on the answers alone scores better"
    return None


def long_prompts(recipe: Recipe, facts: Facts) -> str | None:
    """Where more than 90 % of the tokens are prompt, a step learns from few of those it computes."""
    if not facts.tokens or facts.target_tokens is None:
        return None
    share = 1 - facts.target_tokens / facts.tokens
    if share <= 0.9:
        return None
    return f"{show_percent(share)} of the tokens are prompt: each step learns from few of those it computes"


def continued_pretraining(recipe: Recipe, facts: Facts) -> str | None:
    """Plain text, new knowledge and code want a higher rank, 128 to 256, or full tuning."""
    text = "text" in (recipe.data.format, facts.data_format) or recipe.data.text_template is not None
    text = (text and recipe.train.objective == "sft") or recipe.train.objective == "completion"
    if text and isinstance(recipe.adapter, LoraConfig) and recipe.adapter.r < 128:
        return (
            f"adapter.r is {recipe.adapter.r} on plain text: to learn new knowledge, 128 to 256 (with use_rslora), "
            "embedding and head in modules_to_save, or full tuning come nearer"
        )
    return None
