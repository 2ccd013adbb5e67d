"""Settings of the frozen weights: which number format stores them. No torch is imported here.

One settings type per format, so `quantization: {format: nf4}` accepts `nf4`'s keys and no others. The formats
themselves stand in the files of the same name; the table `FORMATS` is in `quant/formats.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from topcoat.config import Config


class QuantConfig(Config):
    """What every format's settings share."""

    format: str
    overrides: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    """Other formats for some linears, such as {"*.down_proj": int8}: a path or its end, * for anything -> a format's
    name or its settings. The first pattern that fits counts. The head and the embedding are quantized only where a
    pattern ends in their very names, such as lm_head or embed_tokens."""

    @field_validator("overrides")
    @classmethod
    def _are_formats(cls, overrides: dict[str, str | dict[str, Any]]) -> dict[str, str | dict[str, Any]]:
        for pattern, value in overrides.items():
            if isinstance(value, dict) and "overrides" in value:
                raise ValueError(f"{pattern!r} has overrides of its own; write them side by side")
            read_config(value)
        return overrides


class DenseConfig(QuantConfig):
    """The weights as plain numbers: exact, and as large as their dtype."""

    format: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Storage dtype of the frozen weights: 2, 2 or 4 bytes a weight."""


class LevelsConfig(QuantConfig):
    """Levels that a table holds, and one scale for each block of weights."""

    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Weights that share one scale, in row-major order. Smaller is more exact and costs more bits."""
    double_quant: bool = True
    """Store the scales themselves in 8 bits: saves 0.37 bits a weight at a mean scale error of 0.16 %."""

    @property
    def bits(self) -> int:
        """Of one code."""
        return int(self.format[2])


class SixteenConfig(LevelsConfig):
    """16 levels, as bitsandbytes has them too."""


class Nf4Config(SixteenConfig):
    """4-bit NormalFloat (QLoRA, arXiv:2305.14314): 4.127 bits a weight with double quantization, 4.5 without."""

    format: Literal["nf4"] = "nf4"
    """16 levels placed at the quantiles of a normal distribution, one scale for each block."""


class NormalFloatConfig(LevelsConfig):
    """NormalFloat of 3 or 2 bits: 8 or 4 levels at the quantiles of a normal distribution; 3.127 and 2.127 bits a
    weight with double quantization."""

    format: Literal["nf3", "nf2"] = "nf3"
    """As nf4 with fewer levels. nf2 has none for zero."""


class NormalFloatIcqConfig(LevelsConfig):
    """NormalFloat around a centre for each block that makes its codes tell most (IR-QLoRA, arXiv:2402.05445): 4.25,
    3.25 or 2.25 bits a weight with double quantization."""

    format: Literal["nf4-icq", "nf3-icq", "nf2-icq"] = "nf4-icq"
    """nf4, nf3 or nf2 of the weights less their block's centre, which is searched for once, while the model is
    loaded."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Weights that share one scale and one centre, in row-major order."""
    double_quant: bool = True
    """Store the scales in 8 bits, as the centres always are."""
    search_points: int = Field(100, ge=1, le=1000)
    """Centres tried on either side of a block's median: the paper's 100. Fewer make loading faster."""


class Fp4Config(SixteenConfig):
    """4-bit floating point as bitsandbytes has it: as large as nf4, and less exact on normally distributed weights."""

    format: Literal["fp4"] = "fp4"
    """16 levels with two bits of exponent and one of mantissa, one scale for each block."""


class Int8Config(QuantConfig):
    """8-bit integers, one scale for each output row: near bf16 in quality at half its size."""

    format: Literal["int8"] = "int8"
    """code = round(127 w / max|row|); reads back as code * max|row| / 127."""


class IntConfig(QuantConfig):
    """Integers of 2, 3 or 4 bits with a scale and a lowest value for each group of a row: at groups of 32 one bit a
    weight on top."""

    format: Literal["int2", "int3", "int4"] = "int4"
    """code = round((w - low) / scale); reads back as code * scale + low."""
    group_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights of one row that share scale and low; must divide the row. Smaller is more exact and costs more bits."""
    rounding: Literal["nearest", "hqq", "icq", "gptq"] = "nearest"
    """nearest: scale and low from the smallest and the largest weight. hqq: low moves until large errors are few
    (half-quadratic, no data needed). icq: the scale under which the codes tell most, by their entropy. gptq: as
    nearest, but what a weight's rounding does to the outputs on your own rows, the weights that follow make good."""
    calibration_rows: int = Field(128, ge=1)
    """With rounding gptq: training rows, drawn by the seed, whose activations say what matters. More are slower."""
    scale_dtype: Literal["fp16", "fp32"] = "fp16"
    """What scale and low are stored in. fp16 is what GGUF's Q4_1 stores; fp32 costs 32 / group_size bits more."""

    @property
    def bits(self) -> int:
        """Of one code."""
        return int(self.format.removeprefix("int"))


class GgufConfig(QuantConfig):
    """The blocks of GGUF files: what llama.cpp serves is what is trained on."""

    format: Literal["gguf"] = "gguf"
    """Blocks of 32 or 256 weights of a row with fp16 scales."""
    type: Literal["stored", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] = "stored"
    """stored keeps each tensor of a .gguf file as it lies, K types too. A block type quantizes any checkpoint to it,
    as llama.cpp does: 4.5, 5, 5.5, 6 and 8.5 bits a weight."""


class GptqConfig(QuantConfig):
    """Integers whose zero point is one too, as GPTQ and AWQ checkpoints hold them: what other programs read."""

    format: Literal["gptq"] = "gptq"
    """Reads back as (code - zero) * scale; 4.19 bits a weight at 4 bits in groups of 128."""
    bits: Literal[2, 3, 4, 8] = 4
    """Of one code."""
    group_size: Literal[-1, 16, 32, 64, 128, 256, 512, 1024] = 128
    """Weights of one row that share scale and zero; -1 is the whole row."""
    sym: bool = False
    """Zero stays in the middle of the codes, which some fast kernels ask for; less exact."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """nearest, or gptq: what a weight's rounding does to the outputs on your own rows, those that follow make good."""
    calibration_rows: int = Field(128, ge=1)
    """With rounding gptq: training rows, drawn by the seed, whose activations say what matters. More are slower."""


class StoredConfig(QuantConfig):
    """Every linear as the checkpoint has it: quantized ones keep their codes, plain ones their numbers."""

    format: Literal["stored"] = "stored"
    """For checkpoints that are quantized already: GPTQ, AWQ, bitsandbytes, GGUF, or written by topcoat quantize."""


class PluginConfig(QuantConfig):
    """A number format of another package."""

    format: Literal["plugin"] = "plugin"
    """Whatever an installed package registers under `topcoat.formats`."""
    name: str = ""
    """The name it is registered by; it must be written."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its own settings, which it checks itself."""


Quantization = Annotated[
    DenseConfig
    | Nf4Config
    | NormalFloatConfig
    | NormalFloatIcqConfig
    | Fp4Config
    | Int8Config
    | IntConfig
    | GgufConfig
    | GptqConfig
    | StoredConfig
    | PluginConfig,
    Field(discriminator="format"),
]


class NoFormat(ValueError):
    """Something that is no number format; `said` goes on where a sentence has named it."""

    def __init__(self, value: object, said: str) -> None:
        self.said = said
        super().__init__(f"{value!r} {said}")


def read_config(value: str | dict[str, Any]) -> QuantConfig:
    """The settings that a format's name or a mapping of settings means. Raises NoFormat saying what is wrong."""
    given = {"format": value} if isinstance(value, str) else value
    try:
        config: QuantConfig = TypeAdapter(Quantization).validate_python(given)
    except ValidationError as error:
        raise NoFormat(value, _said(error, given)) from error
    return config


def _said(error: ValidationError, given: Any) -> str:
    """What is wrong with settings, to follow them in a sentence."""
    first = error.errors()[0]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found") or len(first["loc"]) < 2:
        tags = first.get("ctx", {}).get("expected_tags", "")
        return f"is no number format: formats are {tags}" if tags else f"is no number format: {first['msg']}"
    name, key = given["format"], str(first["loc"][1])
    if first["type"] == "extra_forbidden":
        return f"sets {key}, and {name} has no such setting"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"sets {key} to {given.get(key)!r}, and {name} takes {expected}"


def rounds_by_rows(config: QuantConfig) -> bool:
    """Whether calibration rows decide the codes of this format, its overrides aside."""
    return isinstance(config, IntConfig | GptqConfig) and config.rounding == "gptq"


def needs_rows(config: QuantConfig) -> bool:
    """Whether some linear of `config` is rounded by calibration rows."""
    return any(map(rounds_by_rows, (config, *(read_config(value) for value in config.overrides.values()))))


def storage(config: QuantConfig) -> dict[str, Any]:
    """What of `config` decides how a weight is stored, and not how its codes were found."""
    found = ("overrides", "rounding", "calibration_rows", "search_points", "sym")
    return {name: value for name, value in config.model_dump().items() if name not in found}
