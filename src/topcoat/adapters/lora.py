"""LoRA: y = W x + scale * B A x, where W stays frozen and only A and B train.

Paper: Hu et al. 2021, arXiv:2106.09685; the "sqrt" scale is rsLoRA, Kalajdzievski 2023, arXiv:2312.03732. Starts of A
and B are in factors.py. LoRA+ (Hayou et al. 2024, arXiv:2402.12354) is a learning rate of B that is `loraplus_lr_ratio`
times A's; LoRA-FA (Zhang et al. 2023, arXiv:2308.03303) is an A that does not train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.eva import share_out, spectra
from topcoat.adapters.factors import RANDOM, from_weight
from topcoat.adapters.limits import rank_problem
from topcoat.adapters.loftq import loftq, require_rounded
from topcoat.adapters.patterns import check_patterns
from topcoat.adapters.settings import LoraConfig, TargetedConfig
from topcoat.adapters.start import Start
from topcoat.errors import TopcoatError
from topcoat.kernels.lora_linear import lora_linear
from topcoat.kernels.projection import LowRank
from topcoat.quant.linear import FrozenLinear


class Lora(Adapter):
    """One adapted linear: x (..., I) -> (..., O), with lora_A (R, I) and lora_B (O, R).

    A start that takes part of W into s B A keeps it as start_A and start_B, and the layer subtracts it again:
    y = W x + s (B A - B0 A0) x. W stays as it is, which is the paper's W - s B0 A0 without its rounding.
    """

    Config = LoraConfig
    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, base: FrozenLinear, config: LoraConfig) -> None:
        super().__init__(base)
        self.config = config
        self.scale = lora_scale(config)
        self.dropout = config.lora_dropout
        device = base.device
        first = torch.empty(config.r, base.in_features, device=device)
        self.lora_A = nn.Parameter(first, requires_grad=not config.freeze_lora_a)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.r, device=device))
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)

    @classmethod
    def build(
        cls, linears: Mapping[str, FrozenLinear], config: TargetedConfig, start: Start | None
    ) -> dict[str, Adapter]:
        assert isinstance(config, LoraConfig)
        check_patterns("rank_pattern", config.rank_pattern, linears)
        check_patterns("alpha_pattern", config.alpha_pattern, linears)
        configs = {path: config.at(path) for path in linears}
        if start is not None:
            check_ranks(linears, config)
            check_start(linears, config, start)
        layers: dict[str, Adapter] = {}
        first = _directions(linears, config, start) if start is not None and config.init_lora_weights == "eva" else {}
        for path, linear in linears.items():
            if first and path not in first:
                continue  # the data gives this one no rank
            own = with_rank(configs[path], len(first[path])) if first else configs[path]
            layer = layers[path] = cls(linear, own)
            if path in first:
                layer.take(first[path], torch.zeros(linear.out_features, own.r))
            elif start is not None and start.originals is not None and config.init_lora_weights == "loftq":
                layer.take(*loftq(start.originals(path), linear, own.r, layer.scale))
            elif start is not None:
                layer.reset(start.generator(path))
        return layers

    @torch.no_grad()
    def take(self, A: Tensor, B: Tensor) -> None:
        """Start from A (R, I) and B (O, R)."""
        self.lora_A.copy_(A)
        self.lora_B.copy_(B)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """lora_A and lora_B as `init_lora_weights` says."""
        name, r = self.config.init_lora_weights, self.config.r
        draw = RANDOM.get(name)
        if draw is not None:
            A, B = draw((self.base.out_features, self.base.in_features), r, generator)
        else:
            A, B = from_weight(str(name), self.base.dense_weight(torch.float32), r, self.scale, generator)
            self.start_A, self.start_B = A.to(self.lora_A.device), B.to(self.lora_A.device)
        self.take(A, B)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        x = x.to(self.base.compute_dtype)
        if self.dropout and self.training:  # only the adapter's input is dropped
            dropped = F.dropout(x, self.dropout)
            y: Tensor = self.base(x) + self.scale * _product(dropped, self.lora_A, self.lora_B)
            if self.start_A is not None and self.start_B is not None:
                y = y - self.scale * _product(x, self.start_A, self.start_B)
            return y
        return lora_linear(self.base, x, *self._both(), self.scale)  # (..., I) -> (..., O)

    def _both(self) -> tuple[Tensor, Tensor]:
        """A and B with what the start took behind them: (R, I) and (O, R), or (2 R, I) and (O, 2 R)."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.start_A)), torch.cat((self.lora_B, -self.start_B), 1)

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + scale * B A."""
        return self._dense(weight) + self.delta_weight()

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """scale * B A, (O, I), without what the start took."""
        A, B = self._both()
        return self.scale * (B.float() @ A.float())

    def changes(self) -> bool:
        if self.start_A is not None and self.start_B is not None:
            return not (torch.equal(self.lora_A, self.start_A) and torch.equal(self.lora_B, self.start_B))
        return bool(self.delta_weight().count_nonzero())

    def drawn(self) -> dict[str, Tensor]:
        kept = {"start_A": self.start_A, "start_B": self.start_B}
        return super().drawn() | {name: tensor for name, tensor in kept.items() if tensor is not None}

    def rate_factor(self, name: str) -> float:
        return self.config.loraplus_lr_ratio or 1.0 if name == "lora_B" else 1.0

    def slots(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def stored(self) -> dict[str, Tensor]:
        A, B = self._both()
        return {"lora_A.weight": A, "lora_B.weight": B}

    def file_rank_alpha(self) -> tuple[int, float]:
        """r and lora_alpha as a file of this layer states them: twice the rank at the same scale after such a start."""
        if self.start_A is None:
            return self.config.r, self.config.lora_alpha
        return 2 * self.config.r, self.config.lora_alpha * (math.sqrt(2) if self.config.use_rslora else 2)

    def low_rank(self) -> list[LowRank] | str:
        terms = [LowRank(self.lora_A, self.lora_B, self.scale, 0, self.dropout)]
        if self.start_A is not None and self.start_B is not None:
            terms.append(LowRank(self.start_A, self.start_B, -self.scale, 0))
        return terms


def _product(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """x (..., I) -> B A x (..., O), in the dtype of x."""
    return x @ A.to(x.dtype).T @ B.to(x.dtype).T


def with_rank(config: LoraConfig, r: int) -> LoraConfig:
    """The same settings at rank r, lora_alpha changed so that the scale stays."""
    times = math.sqrt(r / config.r) if config.use_rslora else r / config.r
    return config.model_copy(update={"r": r, "lora_alpha": config.lora_alpha * times})


def _directions(linears: Mapping[str, FrozenLinear], config: LoraConfig, start: Start) -> dict[str, Tensor]:
    """EVA's A for each layer that is given a rank at all."""
    assert start.model is not None
    assert start.linears is not None
    found = spectra(start.model, {path: start.linears[path] for path in linears}, start.rows, config.r, config.eva_rho)
    limits = {
        path: min(int(config.eva_rho * config.r), linear.in_features, linear.out_features)
        for path, linear in linears.items()
    }
    ranks = share_out({path: one.shares() for path, one in found.items()}, limits, config.r * len(linears))
    return {path: one.vectors[: ranks[path]] for path, one in found.items() if ranks[path] and one.vectors is not None}


def check_start(linears: Mapping[str, FrozenLinear], config: LoraConfig, start: Start) -> None:
    """Raises TopcoatError for a start that these weights, or what is known beside them, do not allow."""
    if config.init_lora_weights in RANDOM or config.init_lora_weights == "eva":
        return
    if config.init_lora_weights == "loftq":
        require_rounded(linears, start.originals is not None)
        return
    for path, linear in linears.items():
        if linear.format.quantized:
            raise TopcoatError(
                f"init_lora_weights: {config.init_lora_weights} takes part of the base's weights, and {path} is stored "
                f"as {linear.weight_state.format}",
                where="adapter.init_lora_weights",
                fix="write loftq there, which starts from what rounding lost; or remove model.quantization",
            )


def check_ranks(linears: Mapping[str, FrozenLinear], config: TargetedConfig) -> None:
    """Raises TopcoatError where a rank is above what a change of that matrix can have."""
    for path, linear in linears.items():
        problem = rank_problem(config, path, linear.out_features, linear.in_features)
        if problem is not None:
            raise TopcoatError.gather([problem])


def lora_scale(config: LoraConfig) -> float:
    """lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA."""
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
