"""QA-LoRA: y = W x + s B A pool(x), with pool(x) the mean of x over each group of S inputs, on integer weights.

    W[o, i] = scale[o, l] code[o, i] + low[o, l],  l = i // S  ->  W + s B A pool = scale code + (low + s / S B A)

What is added to a weight is the same for all weights of a group, so `low` takes it up and the codes stay: the merged
weight is an integer weight again, and nothing is rounded to the grid a second time. A is (R, I / S), B (O, R).

The papers and codes differ in how x is pooled: a sum in the listing, the mean in the authors' code and here, the mean
times I / S in PEFT's `use_qalora`. Files hold the plain LoRA that computes the same, A[r, l] / S repeated over each
group, so every reader of LoRA computes what was trained; S is a power of two, so that no bit is lost on the way.

Paper: Xu et al. 2023, arXiv:2309.14717.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.factors import RANDOM
from topcoat.adapters.limits import GROUP, group_problem
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import LoraConfig, QaloraConfig, TargetedConfig
from topcoat.adapters.start import Start
from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.kernels.projection import LowRank
from topcoat.quant.linear import FrozenLinear

_LOW_BLOCKS = {3: 32, 7: 32}  # ggml's numbers of Q4_1 and Q5_1 -> weights that share a scale and a lowest value
_A = ".lora_A.weight"


def group_size(linear: FrozenLinear) -> int | None:
    """Weights of a row that share scale and low; None where the format has no lowest value of its own."""
    state = linear.weight_state
    low = state.tensors.get("low")  # (O, L)
    if low is not None:
        return linear.in_features // low.shape[1]
    return _LOW_BLOCKS.get(int(state.scalars["type"])) if state.format == "gguf" and state.scalars else None


class Qalora(Lora):
    """A linear on integer weights (I -> O) with lora_A (R, I / S) and lora_B (O, R)."""

    Config = QaloraConfig

    def __init__(self, base: FrozenLinear, config: LoraConfig) -> None:
        assert isinstance(config, QaloraConfig)
        super().__init__(base, config)
        self.group = config.qalora_group_size
        pooled = torch.empty(config.r, base.in_features // self.group, device=base.device)
        self.lora_A = nn.Parameter(pooled, requires_grad=not config.freeze_lora_a)

    @classmethod
    def build(
        cls, linears: Mapping[str, FrozenLinear], config: TargetedConfig, start: Start | None
    ) -> dict[str, Adapter]:
        assert isinstance(config, QaloraConfig)
        require_groups(linears, config.qalora_group_size)
        return super().build(linears, config, start)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """LoRA's start for a weight of (O, I / S)."""
        shape = (self.base.out_features, self.lora_A.shape[1])
        self.take(*RANDOM[self.config.init_lora_weights](shape, self.config.r, generator))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        x = x.to(self.base.compute_dtype)
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        pooled = dropped.unflatten(-1, (-1, self.group)).mean(-1)  # (..., I / S)
        return self.base(x) + self.scale * (pooled @ self.lora_A.to(x.dtype).T @ self.lora_B.to(x.dtype).T)

    def _both(self) -> tuple[Tensor, Tensor]:
        """A (R, I) and B (O, R) of the LoRA that computes the same."""
        return widened(self.lora_A, self.group), self.lora_B

    @torch.no_grad()
    def delta_low(self) -> Tensor:
        """What `low` takes up, (O, I / S) float64: s / S B A."""
        return (self.scale / self.group) * (self.lora_B.double() @ self.lora_A.double())

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor] | None:
        A, B = self._both()
        return A, self.scale * B

    def low_rank(self) -> list[LowRank] | str:
        return [LowRank(self.lora_A, self.lora_B, self.scale, 0, self.dropout, self.group)]


def widened(A: Tensor, group: int) -> Tensor:
    """A (R, L) on means of groups -> A (R, L * group) on what they are the means of."""
    return A.repeat_interleave(group, dim=1) / group


def narrowed(stored: Mapping[str, Tensor], group: int, where: str) -> dict[str, Tensor]:
    """The tensors of a file with every A (R, I) as A (R, I / group): `widened` undone, bit for bit.

    Raises Refused where an A is not the same throughout each group, so that the file is no QA-LoRA's.
    """
    found = dict(stored)
    for name, wide in stored.items():
        if not name.endswith(_A):
            continue
        parts = wide.unflatten(1, (-1, group)) if wide.dim() == 2 and wide.shape[1] % group == 0 else None
        if parts is None or not torch.equal(parts, parts[..., :1].expand_as(parts)):
            raise Refused(
                f"{name} differs inside groups of {group} inputs, so this is no QA-LoRA",
                where,
                "copy the adapter again; to load it as the plain LoRA it is, delete its topcoat.json",
            )
        found[name] = parts[..., 0] * group
    return found


def from_peft(values: Mapping[str, Any], stored: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors of PEFT's `use_qalora` as those of the plain LoRA that computes the same, on any base.

    PEFT multiplies the means by their number, L = I / S. Raises TopcoatError where no group size is stated.
    """
    group = values.get(GROUP, 16)  # PEFT's default
    if not isinstance(group, int) or isinstance(group, bool) or group < 1:
        raise TopcoatError(f"{GROUP} is {repr(group)[:60]}, no whole number", str(folder), "copy the adapter again")
    return {n: widened(t * t.shape[1], group) if n.endswith(_A) and t.dim() == 2 else t for n, t in stored.items()}


def require_groups(linears: Mapping[str, FrozenLinear], group: int) -> None:
    """Raises TopcoatError for linears whose number format cannot take the update up, or not in groups of `group`."""
    problems: dict[Problem, list[str]] = {}
    for path, linear in linears.items():
        own = group_size(linear)
        problem = group_problem(group, own, linear.weight_state.format, linear.in_features)
        if problem is not None:
            problems.setdefault(problem, []).append(path)
    if problems:
        said = [Problem(f"{p.what}: {_some(paths)}", p.where, p.fix) for p, paths in problems.items()]
        raise TopcoatError.gather(said)


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
