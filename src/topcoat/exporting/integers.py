"""Merged integer weights: the codes of the base as they are, their lowest values with a QA-LoRA's update in them.

    W + s B A pool = scale code + (low + s / S B A)      (adapters/qalora.py; Xu et al. 2023, arXiv:2309.14717)

As Q4_1 of GGUF, `scale` is d and the new lowest value, rounded once to fp16, is m: every block of 32 weights lies
inside one group, so what is served differs from what was trained by the rounding of m alone. Codes of 2 and 3 bits fit
too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.adapters.base import Adapter
from topcoat.adapters.qalora import Qalora
from topcoat.errors import TopcoatError
from topcoat.kernels.gguf_dequant import BLOCK_TYPES
from topcoat.kernels.packed_codes import unpack_bits
from topcoat.quant.linear import FrozenLinear

BLOCK = 32
_Q4_1 = BLOCK_TYPES["Q4_1"]


@dataclass(frozen=True)
class Integers:
    """One weight (O, I) as scale code + low, S weights of a row to a scale and a low."""

    codes: Tensor
    """(O, I) uint8."""
    scale: Tensor
    """(O, I / S) float32."""
    low: Tensor
    """(O, I / S) float32."""

    @property
    def group(self) -> int:
        """S."""
        return self.codes.shape[1] // self.scale.shape[1]

    def fits_blocks(self) -> bool:
        """Whether Q4_1 holds these scales as they are, and every block of it lies inside one group."""
        return self.group % BLOCK == 0 and torch.equal(self.scale.half().float(), self.scale)

    def dense(self) -> Tensor:
        """(O, I) float32, as every reader rebuilds it: product first, then the sum, each rounded once."""
        grouped = self.codes.float().unflatten(1, (-1, self.group))
        return (grouped * self.scale[..., None] + self.low[..., None]).flatten(1)


def integers_of(linear: FrozenLinear) -> Integers | None:
    """The codes, scales and lowest values of `linear`; None where its format is no such integers."""
    state = linear.weight_state
    tensors = state.tensors
    if "low" in tensors:
        bits = 8 * tensors["codes"].shape[1] // state.shape[1]
        return Integers(unpack_bits(tensors["codes"], bits), tensors["scale"].float(), tensors["low"].float())
    if state.format == "gguf" and int(state.scalars.get("type", -1)) == _Q4_1.id:
        blocks = tensors["blocks"].unflatten(1, (-1, _Q4_1.bytes))  # (O, L, 20)
        halves = blocks[..., :4].contiguous().view(torch.float16).float()  # (O, L, 2)
        codes = torch.cat((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), dim=-1).flatten(1)
        return Integers(codes, halves[..., 0], halves[..., 1])
    return None


def merged_integers(module: FrozenLinear | Adapter) -> Integers | None:
    """The integers that compute what `module` computes; None where none do, because of its format or its method."""
    if isinstance(module, FrozenLinear):
        return integers_of(module)
    if not isinstance(module, Qalora):
        return None
    found = integers_of(module.base)
    if found is None:
        return None
    wider = module.group // found.group  # a mean may be over several groups of the base
    update = module.delta_low().repeat_interleave(wider, dim=1)
    return Integers(found.codes, found.scale, (found.low.double() + update).float())


def as_q4_1(weight: Integers, name: str) -> Tensor:
    """`weight` as blocks of Q4_1, (O, I / 32 * 20) uint8.

    Raises TopcoatError where blocks of 32 cross groups, or a scale is no fp16 number.
    """
    where = "model.quantization"
    rows, columns = weight.codes.shape
    if weight.group % BLOCK:
        raise TopcoatError(
            f"{name} has groups of {weight.group} weights, and Q4_1 has blocks of {BLOCK}",
            where=f"{where}.group_size",
            fix="train with group_size: 32 or more, or export --type f16",
        )
    scale = weight.scale.half()
    if not torch.equal(scale.float(), weight.scale):
        raise TopcoatError(
            f"the scales of {name} are float32, and Q4_1 stores fp16: its weights would all be rounded again",
            where=f"{where}.scale_dtype",
            fix="train with scale_dtype: fp16, or export --type f16",
        )
    low = weight.low.half()
    if not bool(torch.isfinite(low).all()):
        raise TopcoatError(
            f"the lowest values of {name} reach {float(weight.low.abs().max()):.3g}, and fp16 ends at 65504",
            where=str(name),
            fix="export --type bf16; such an adapter has seldom learned what was meant",
        )
    times = weight.group // BLOCK
    constants = torch.stack((scale, low), dim=-1).repeat_interleave(times, dim=1)  # (O, I / 32, 2)
    codes = weight.codes.unflatten(1, (-1, 2, BLOCK // 2))  # (O, I / 32, 2, 16)
    packed = codes[:, :, 0] | (codes[:, :, 1] << 4)
    blocks = torch.cat((constants.contiguous().view(torch.uint8), packed), dim=-1)  # (O, I / 32, 20)
    return blocks.reshape(rows, columns // BLOCK * _Q4_1.bytes).cpu()


def with_halves(weight: Integers) -> Integers:
    """`weight` with its lowest values rounded as Q4_1 rounds them."""
    return Integers(weight.codes, weight.scale, weight.low.half().float())
