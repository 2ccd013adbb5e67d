"""Settings of the frozen weights: which number format stores them. No torch is imported here.

One settings type per format, so `quantization: {format: nf4}` accepts `nf4`'s keys and no others. The formats
themselves stand in the files of the same name; the table `FORMATS` is in `quant/formats.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from topcoat.config import Config


class QuantConfig(Config):
    """What every format's settings share: the name that picks it."""

    format: str


class DenseConfig(QuantConfig):
    """The weights as plain numbers: exact, and as large as their dtype."""

    format: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Storage dtype of the frozen weights: 2, 2 or 4 bytes a weight."""


class Nf4Config(QuantConfig):
    """4-bit NormalFloat (QLoRA, arXiv:2305.14314): 4.127 bits a weight with double quantization, 4.5 without."""

    format: Literal["nf4"] = "nf4"
    """16 levels placed at the quantiles of a normal distribution, one scale for each block."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Weights that share one scale, in row-major order. Smaller is more exact and costs more bits."""
    double_quant: bool = True
    """Store the scales themselves in 8 bits: saves 0.37 bits a weight at a mean scale error of 0.16 %."""


class Int8Config(QuantConfig):
    """8-bit integers, one scale for each output row: near bf16 in quality at half its size."""

    format: Literal["int8"] = "int8"
    """code = round(127 w / max|row|); reads back as code * max|row| / 127."""


Quantization = Annotated[DenseConfig | Nf4Config | Int8Config, Field(discriminator="format")]
