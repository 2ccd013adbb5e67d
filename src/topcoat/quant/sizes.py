"""Bytes that a frozen weight takes in each number format, from its shape alone; no torch, so that plans can be made.

    bf16, fp16, fp32   2, 2, 4 bytes a weight
    int8               1 byte a weight and 4 a row
    nf4, fp4           half a byte a weight; scales of 4 bytes a block, or, doubly quantized, 1 byte a block, 4 bytes
                       for each 256 blocks and 4 for the mean: 0.51587 bytes a weight at blocks of 64
    nf3, nf2           as nf4, with 3 bytes for eight weights, or 1 for four
    nf4-icq, nf3-icq, nf2-icq
                       as those, and a centre of 1 byte a block with 4 bytes for each 256 of them
    gguf               18 to 34 bytes for each 32 weights, counted as codes
    int2, int3, int4   2, 3, 4 bits a weight, and a scale and a lowest value of 2 or 4 bytes a group
    gptq               2, 3, 4 or 8 bits a weight, and a scale of 2 bytes and a zero of 1 a group

QLoRA: Dettmers et al. 2023, arXiv:2305.14314, section 3. Tests hold these to the tensors that the formats make.
"""

from __future__ import annotations

from topcoat.errors import TopcoatError
from topcoat.kernels.code_sizes import packed_bytes
from topcoat.quant.settings import (
    GgufConfig,
    GptqConfig,
    Int8Config,
    IntConfig,
    LevelsConfig,
    NormalFloatIcqConfig,
    QuantConfig,
)

ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
NESTED_BLOCK = 256
"""Scales that share one scale of their own."""


GGUF_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
"""Block type -> bytes of 32 weights, in which codes and constants lie together."""


def weight_bytes(config: QuantConfig, out_features: int, in_features: int) -> tuple[int, int]:
    """(bytes of the codes or plain numbers, bytes of the quantization constants) of one weight (O, I)."""
    count = out_features * in_features
    if isinstance(config, Int8Config):
        return count, 4 * out_features
    if isinstance(config, GgufConfig):
        if config.type == "stored":
            raise TopcoatError(
                "format gguf keeps the blocks of a GGUF file, and only such a file says how large they are",
                where="model.quantization",
                fix="name a .gguf file in model.path, or a block type: quantization: {format: gguf, type: Q4_0}",
            )
        return count // 32 * GGUF_BYTES[config.type], 0
    if isinstance(config, IntConfig):
        return count * config.bits // 8, 2 * ITEM_BYTES[config.scale_dtype] * (count // config.group_size)
    if isinstance(config, GptqConfig):
        groups = 1 if config.group_size == -1 else -(-in_features // config.group_size)  # a file's last may be short
        return count * config.bits // 8, 3 * out_features * groups
    if isinstance(config, LevelsConfig):
        blocks = -(-count // config.block_size)
        scales = double_nbytes(blocks) if config.double_quant else 4 * blocks
        centres = blocks + 4 * -(-blocks // NESTED_BLOCK) if isinstance(config, NormalFloatIcqConfig) else 0
        return packed_bytes(count, config.bits), scales + centres
    if config.format in ITEM_BYTES:
        return count * ITEM_BYTES[config.format], 0
    from topcoat.quant.formats import make_format  # a format that only its own file can count, and that file has torch

    return make_format(config).nbytes(out_features, in_features), 0


def double_nbytes(count: int) -> int:
    """Bytes of `count` doubly quantized scales: a code each, a float32 for each 256, and their mean."""
    return count + 4 * -(-count // NESTED_BLOCK) + 4
