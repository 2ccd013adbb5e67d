"""LoftQ: a start of LoRA that repairs what rounding the base has lost.

    R = W - dequantize(Q);   s B A = SVD_r(R):  B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_r'

One step of the paper's alternation, on the quantized weight Q = quantize(W) that is there: Q stays as it is, so the
adapter is a plain LoRA for this very Q. (Further steps quantize W - s B A again and change Q by a few per cent of the
error.) The product is divided by the scale s; PEFT's is not, and is right at s = 1 only.

The adapter holds the rounding error of one number format: on the unrounded weights, or on another format, it would add
an error instead of removing one. Files say which format (`only_on`), and loading elsewhere is refused.

Paper: Li et al. 2023, arXiv:2310.08659.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from topcoat.adapters.factors import Factors, pissa
from topcoat.errors import Refused, TopcoatError
from topcoat.quant.linear import FrozenLinear


def loftq(W: Tensor, linear: FrozenLinear, r: int, scale: float) -> Factors:
    """A (R, I) and B (O, R) that bring `linear` as near to W (O, I) as rank r allows.

    Raises TopcoatError where they are the same already.
    """
    lost = W - linear.dense_weight(W.dtype)
    if not bool(lost.any()):  # A and B would both be zero, and zero they would stay
        raise TopcoatError(
            f"init_lora_weights: loftq repairs rounding, and a weight stored as {stored_as(linear)} is just as the "
            "checkpoint has it, rounded there already",
            where="adapter.init_lora_weights",
            fix="leave init_lora_weights out; or give the checkpoint as it was before it was quantized",
        )
    return pissa(lost, r, scale, torch.Generator())


def require_rounded(linears: Mapping[str, FrozenLinear], has_originals: bool) -> None:
    """Raises TopcoatError where there is no rounding error to repair, or nothing to measure it against."""
    where = "adapter.init_lora_weights"
    for path, linear in linears.items():
        if not linear.format.quantized:
            raise TopcoatError(
                f"init_lora_weights: loftq repairs rounded weights, and {path} is stored as {stored_as(linear)}",
                where=where,
                fix="write model.quantization: {format: nf4}, or leave init_lora_weights out",
            )
    if not has_originals:
        raise TopcoatError(
            "init_lora_weights: loftq needs the weights as they were before rounding",
            where=where,
            fix="pass attach(..., originals=Originals(base))",
        )


def stored_as(linear: FrozenLinear) -> str:
    """The number format of one weight with its settings, in words that another base can be compared by."""
    settings = linear.format.config.model_dump(exclude={"format", "overrides"})
    return " ".join([linear.weight_state.format, *(f"{key}={settings[key]}" for key in sorted(settings))])


def require_same_formats(linears: Mapping[str, FrozenLinear], only_on: Mapping[str, str], where: str) -> None:
    """Raises Refused where a linear is stored in another format than the adapter was started on."""
    for path, linear in linears.items():
        if stored_as(linear) != only_on.get(path):
            raise Refused(
                f"the adapter repairs the rounding of {only_on.get(path)}, and {path} is stored as "
                f"{stored_as(linear)}: there it would add an error instead of removing one",
                where=where,
                fix="load it on the base in the format it was trained on, or merge it there",
            )
