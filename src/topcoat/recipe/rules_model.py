"""Rules about the base and the data: number formats, dtypes, which tokens are trained."""

from __future__ import annotations

from topcoat.adapters.settings import LoraConfig
from topcoat.quant.settings import (
    GgufConfig,
    GptqConfig,
    IntConfig,
    LevelsConfig,
    Nf4Config,
    PluginConfig,
    QuantConfig,
    StoredConfig,
)
from topcoat.quant.sizes import weight_bytes
from topcoat.recipe.guidance import Facts
from topcoat.recipe.schema import Recipe
from topcoat.units import show_bytes, show_count, show_percent

SMALL = 1_000_000_000  # parameters
FOUR_BITS_AT_MOST = 5.25  # bits a weight with its scales: formats of 4 take 4.13 to 5, those of 5 take 5.5 and more
SIDE = 4096  # of the matrix that a format's bits are counted on


def fp16_on_4bit(recipe: Recipe, facts: Facts) -> str | None:
    """Compute in bf16 or fp32 on 4-bit weights: about one fp16 run in five diverges."""
    stored = _in_four_bits(recipe, facts)
    if recipe.model.compute_dtype != "fp16" or stored is None:
        return None
    return f"model.compute_dtype fp16 on {stored} weights is unstable in about one run of five; bf16 or fp32 is safer"


def format_by_choice(recipe: Recipe, facts: Facts) -> str | None:
    """nf4 is the most exact 4-bit format without calibration; fp4 and integers have other reasons."""
    quantization, stored = recipe.model.quantization, _in_four_bits(recipe, Facts())
    if stored is None or stored in ("nf4", "nf4-icq"):
        return None
    if recipe.adapter.method == "qalora":  # it merges into integers: they are what it is for
        return None
    few = isinstance(quantization, LevelsConfig | IntConfig | GptqConfig) and quantization.bits < 4
    if not few and isinstance(quantization, IntConfig | GptqConfig) and quantization.rounding == "gptq":
        return None  # calibrated, and nf4 is not
    worse = "fewer bits cost quality" if few else "nf4 is more exact at its size"
    return f"model.quantization.format is {stored}: {worse}; topcoat quantize --report measures both"


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
    quantization, stored = recipe.model.quantization, _in_four_bits(recipe, facts)
    if quantization is None or stored is None or not facts.parameters or facts.parameters >= SMALL:
        return None
    said = f"model.quantization.format {stored} on {show_count(facts.parameters)} parameters"
    if isinstance(quantization, StoredConfig) or (
        isinstance(quantization, GgufConfig) and quantization.type == "stored"
    ):
        return f"{said} costs more quality than on a large model; load what it was made from, dense or in int8"
    saved = show_bytes((16 - _bits(quantization, facts)) / 8 * facts.parameters)
    return f"{said} saves at most {saved} and costs more quality than on a large model; int8, or null for dense weights"


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


def _in_four_bits(recipe: Recipe, facts: Facts) -> str | None:
    """The format of frozen weights of four bits or fewer, in words; None for any other, and where nothing tells."""
    quantization = recipe.model.quantization
    if isinstance(quantization, LevelsConfig | IntConfig):
        return quantization.format
    if isinstance(quantization, GptqConfig):
        return f"{quantization.bits}-bit gptq" if quantization.bits <= 4 else None
    if isinstance(quantization, GgufConfig) and quantization.type != "stored":
        return f"gguf {quantization.type}" if quantization.type.startswith("Q4") else None
    if quantization is None or quantization.format not in ("gguf", "stored", "plugin") or facts.weight_bits is None:
        return None
    named = quantization.name if isinstance(quantization, PluginConfig) else quantization.format
    return f"{named} ({facts.weight_bits:.1f} bits each)" if facts.weight_bits <= FOUR_BITS_AT_MOST else None


def _bits(quantization: QuantConfig, facts: Facts) -> float:
    """Bits that one weight takes, its share of the scales included."""
    if isinstance(quantization, PluginConfig):  # its package alone can count them, and has
        return facts.weight_bits or 16
    return 8 * sum(weight_bytes(quantization, SIDE, SIDE)) / SIDE**2
