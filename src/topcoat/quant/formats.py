"""The number formats by name. A new one is its file and its line here."""

from __future__ import annotations

from topcoat.quant.base import QuantFormat
from topcoat.quant.dense import Dense
from topcoat.quant.fp4 import Fp4
from topcoat.quant.gguf_blocks import GgufBlocks
from topcoat.quant.gptq_integers import GptqIntegers
from topcoat.quant.grouped import Grouped
from topcoat.quant.icq import NormalFloatIcq
from topcoat.quant.int8 import Int8
from topcoat.quant.normal_float import Nf4, NormalFloat
from topcoat.quant.plugins import load_plugin
from topcoat.quant.settings import PluginConfig, QuantConfig, StoredConfig
from topcoat.quant.stored import Stored

FORMATS: dict[str, type[QuantFormat]] = {
    "bf16": Dense,
    "fp16": Dense,
    "fp32": Dense,
    "nf4": Nf4,
    "nf3": NormalFloat,
    "nf2": NormalFloat,
    "nf4-icq": NormalFloatIcq,
    "nf3-icq": NormalFloatIcq,
    "nf2-icq": NormalFloatIcq,
    "fp4": Fp4,
    "int8": Int8,
    "int4": Grouped,
    "int3": Grouped,
    "int2": Grouped,
    "gguf": GgufBlocks,
    "gptq": GptqIntegers,
}


def make_format(config: QuantConfig) -> QuantFormat:
    """The format that `config` describes. Raises TopcoatError if it is another package's and cannot be had."""
    if isinstance(config, PluginConfig):
        return load_plugin(config)
    if isinstance(config, StoredConfig):
        return Stored(config)
    return FORMATS[config.format](config)
