"""How GPTQ files name and pack a quantized linear, so that other programs read what Topcoat rounded.

model/gptq_tensors.py says what each tensor holds. Written is version 1 (`checkpoint_format: gptq`), which stores
zero - 1: the format `gptq` has no zero of 0, so every program reads the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.bits import pack_bits
from topcoat.quant.settings import GptqConfig


def check_packable(path: str, out_features: int, in_features: int, bits: int) -> None:
    """Raises TopcoatError if codes or zero points would not fill whole words of 32 bits."""
    for name, count in (("outputs", out_features), ("inputs", in_features)):
        if count * bits % 32:
            raise TopcoatError(
                f"{path} has {count} {name}, and {bits}-bit codes of them do not fill words of 32 bits",
                where="topcoat quantize",
                fix="write format int4, which Topcoat loads; or quantize this model with other bits",
            )


def linear_tensors(name: str, weight: QuantizedWeight) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, tensor) for the linear at module path `name`, (O, I)."""
    tensors, bits = weight.tensors, int(weight.scalars["bits"])
    rows, columns = weight.shape
    check_packable(name, rows, columns, bits)
    if "group" in tensors:
        raise TopcoatError(
            f"{name} has groups that its file lists column by column (activation order, or a short last group), and "
            "this file would say that no linear has",
            where="topcoat quantize",
            fix="quantize the original checkpoint; or give an override, such as {format: gptq, overrides: "
            f"{{{name.rpartition('.')[2]}: int8}}}}, and all others are kept as they are, in a file that Topcoat loads",
        )
    if int(tensors["zero"].min()) < 1:
        raise TopcoatError(
            f"{name} has groups with a zero point of 0, which version 1 of the GPTQ format cannot say",
            where="topcoat quantize",
            fix="quantize the original checkpoint; Topcoat's own rounding makes no such groups",
        )
    groups = tensors["zero"].shape[1]
    yield f"{name}.qweight", tensors["codes"].contiguous().view(torch.int32).T.contiguous()  # (I b / 32, O)
    stored = (tensors["zero"].T - 1).contiguous()  # (L, O) uint8
    yield f"{name}.qzeros", pack_bits(stored, bits).view(torch.int32)  # (L, O b / 32)
    yield f"{name}.scales", tensors["scale"].T.contiguous()  # (L, O)
    counted = torch.arange(columns, dtype=torch.int32) // (columns // groups)
    yield f"{name}.g_idx", counted


def quantization_config(config: GptqConfig) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": config.bits,
        "group_size": config.group_size,
        "desc_act": False,
        "sym": config.sym,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"topcoat:{version('topcoat')}"]},
    }
