"""LoRA: y = W x + scale * B A x, where W stays frozen and only A and B train.

Paper: Hu et al. 2021, arXiv:2106.09685; the "sqrt" scale is rsLoRA, Kalajdzievski 2023, arXiv:2312.03732. A starts
uniform in +-1/sqrt(in_features) (the reference code's kaiming_uniform with a = sqrt 5), B at zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.settings import LoraConfig
from topcoat.kernels.lora_linear import lora_linear
from topcoat.quant.linear import FrozenLinear


class Lora(Adapter):
    """One adapted linear: x (..., I) -> (..., O), with lora_A (R, I) and lora_B (O, R)."""

    Config = LoraConfig

    def __init__(self, base: FrozenLinear, config: LoraConfig) -> None:
        super().__init__(base)
        self.scale = lora_scale(config)
        self.dropout = config.lora_dropout
        device = base.device
        self.lora_A = nn.Parameter(torch.empty(config.r, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.r, device=device))

    def reset(self, generator: torch.Generator) -> None:
        """lora_A uniform in +-1/sqrt(I), lora_B zero."""
        bound = 1 / math.sqrt(self.base.in_features)
        with torch.no_grad():
            start = torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator)
            self.lora_A.copy_(start)
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        x = x.to(self.base.compute_dtype)
        if self.dropout and self.training:  # only the adapter's input is dropped
            dropped = F.dropout(x, self.dropout)
            A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
            return self.base(x) + self.scale * (dropped @ A.T @ B.T)
        return lora_linear(self.base, x, self.lora_A, self.lora_B, self.scale)  # (..., I) -> (..., O)

    def delta_weight(self) -> Tensor:
        """scale * B A, (O, I)."""
        return self.scale * (self.lora_B.detach().float() @ self.lora_A.detach().float())


def lora_scale(config: LoraConfig) -> float:
    """lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA."""
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
