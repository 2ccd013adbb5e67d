"""AdaLoRA: y = W x + s P (E * (Q x)), an update kept in the form of an SVD, from which a run takes ranks away.

lora_B is P (O, R), lora_E is E (R, 1), lora_A is Q (R, I); R = init_r and s = lora_alpha / (init_r + 1e-5), which stays
when ranks go, as in the authors' code and in PEFT. P and Q start normal with deviation 0.02 and E at zero, so a fresh
adapter changes nothing. Two things keep it an SVD whose entries can be ranked and dropped:

    orthogonality (O3) = mean over all P and Q of  |P'P - 1|  and  |Q Q' - 1|      (Frobenius norms)

enters the loss with weight `orth_reg_weight` (the authors' code and PEFT: plain norms, their mean; the paper: squared
norms, their sum), and `training/ranks.py` sets entries of E to zero while the budget falls. Then

    A' = s E * Q,  B' = P,  rows with E = 0 left out

is exactly a LoRA with ranks of its own, which is how it computes here and what `adapters/as_lora.py` writes.

Paper: Zhang et al. 2023, arXiv:2303.10512.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.lora import check_ranks
from topcoat.adapters.settings import AdaloraConfig, TargetedConfig
from topcoat.adapters.start import Start
from topcoat.errors import TopcoatError
from topcoat.kernels.lora_linear import lora_linear
from topcoat.kernels.projection import LowRank
from topcoat.quant.linear import FrozenLinear

DEVIATION = 0.02
SUFFIX = ".lora_E"
"""What PEFT puts behind a path in rank_pattern."""


class AdaLora(Adapter):
    """A frozen linear (I -> O) with lora_A (R, I), lora_E (R, 1) and lora_B (O, R).

    R is init_r while it trains; read from a file it is what the file kept of them.
    """

    Config = AdaloraConfig
    kept: Tensor

    def __init__(self, base: FrozenLinear, config: AdaloraConfig, kept: Sequence[bool] | None = None) -> None:
        """`kept` says of each of the init_r directions whether the file to be read holds it."""
        super().__init__(base)
        r, device = config.init_r if kept is None else sum(kept), base.device
        self.config, self.dropout = config, config.lora_dropout
        self.scale = config.lora_alpha / (config.init_r + 1e-5)
        self.lora_A = nn.Parameter(torch.zeros(r, base.in_features, device=device))
        self.lora_E = nn.Parameter(torch.zeros(r, 1, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        whole = torch.ones(config.init_r, dtype=torch.bool) if kept is None else torch.tensor(list(kept))
        self.register_buffer("kept", whole.to(device), persistent=False)  # (init_r,)

    @classmethod
    def build(
        cls, linears: Mapping[str, FrozenLinear], config: TargetedConfig, start: Start | None
    ) -> dict[str, Adapter]:
        assert isinstance(config, AdaloraConfig)
        if start is None:
            _check_pattern(linears, config)
            kept = {path: config.rank_pattern.get(path + SUFFIX) for path in linears}
            return {path: cls(linear, config, kept[path]) for path, linear in linears.items()}
        _check(linears, config)
        layers: dict[str, Adapter] = {path: cls(linear, config) for path, linear in linears.items()}
        for path, layer in layers.items():
            layer.reset(start.generator(path))
        return layers

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """P and Q normal, E zero, nothing taken away."""
        for factor in (self.lora_A, self.lora_B):
            factor.copy_(torch.empty(factor.shape).normal_(0, DEVIATION, generator=generator))
        self.lora_E.zero_()
        self.kept.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        x = x.to(self.base.compute_dtype)
        A, B = self.factors()
        if self.dropout and self.training:  # only the adapter's input is dropped
            dropped = F.dropout(x, self.dropout)
            return self.base(x) + self.scale * (dropped @ A.to(x.dtype).T @ B.to(x.dtype).T)
        return lora_linear(self.base, x, A, B, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """E * Q (R, I) and P (O, R), as differentiable functions of what trains."""
        return self.lora_E * self.lora_A, self.lora_B

    @torch.no_grad()
    def as_lora(self) -> tuple[Tensor, Tensor] | None:
        """s E * Q (K, I) and P (O, K), the K directions that are kept; one of zeros where none is."""
        rows = self._rows()
        if not self.rank:  # a LoRA has a rank, and some readers take no empty matrix
            return self.lora_A.new_zeros(1, self.base.in_features), self.lora_B.new_zeros(self.base.out_features, 1)
        return self.scale * (self.lora_E * self.lora_A)[rows], self.lora_B[:, rows]

    def _rows(self) -> Tensor:
        """Which of the R rows here are kept, (R,) bool."""
        return self.kept if len(self.lora_E) == len(self.kept) else self.kept[self.kept]

    @property
    def rank(self) -> int:
        """Directions that are kept."""
        return int(self.kept.sum())

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """From now on the directions outside `kept` (init_r,) are zero, and files leave them out."""
        self.kept.copy_(kept)
        self.hide(kept)

    @torch.no_grad()
    def hide(self, kept: Tensor) -> None:
        """Zero the directions outside `kept` (init_r,); they may come back."""
        self.lora_E.masked_fill_(~kept[:, None], 0.0)

    def skewness(self) -> list[Tensor]:
        """|Q Q' - 1| and |P'P - 1|, Frobenius norms: 0 where the directions are orthonormal."""
        products = (self.lora_A @ self.lora_A.T, self.lora_B.T @ self.lora_B)
        return [torch.linalg.matrix_norm(M - torch.eye(len(M), device=M.device)) for M in products]

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + s P diag(E) Q."""
        A, B = self.factors()
        return self._dense(weight) + self.scale * (B @ A)

    @torch.no_grad()
    def changes(self) -> bool:
        A, B = self.factors()
        return bool((B @ A).count_nonzero())

    def drawn(self) -> dict[str, Tensor]:
        return super().drawn() | {"kept": self.kept}

    def stored(self) -> dict[str, Tensor]:
        rows = self._rows()
        return {"lora_A": self.lora_A[rows], "lora_B": self.lora_B[:, rows], "lora_E": self.lora_E[rows]}

    def low_rank(self) -> list[LowRank] | str:
        A, B = self.factors()
        return [LowRank(A.detach(), B.detach(), self.scale, 0, self.dropout, factors=self.factors)]


def _check(linears: Mapping[str, FrozenLinear], config: AdaloraConfig) -> None:
    """Raises TopcoatError for settings that no start can have on these linears."""
    if config.rank_pattern:
        raise TopcoatError(
            "adapter.rank_pattern says which directions a finished AdaLoRA run has kept; this one is yet to find out",
            where="adapter.rank_pattern",
            fix="leave it out; init_r and target_r say how many there are at the start and at the end",
        )
    check_ranks(linears, config)


def _check_pattern(linears: Mapping[str, FrozenLinear], config: AdaloraConfig) -> None:
    """Raises TopcoatError for a file's rank_pattern that is not one of these linears."""
    unknown = sorted(config.rank_pattern.keys() - {path + SUFFIX for path in linears})
    wrong = [name for name, kept in config.rank_pattern.items() if len(kept) != config.init_r]
    if unknown or wrong:
        if unknown:
            said = f"names {unknown[0]}, and nothing is adapted there"
        else:
            said = f"has {len(config.rank_pattern[wrong[0]])} entries for {wrong[0]}, and init_r is {config.init_r}"
        raise TopcoatError(f"rank_pattern {said}", where="rank_pattern", fix="copy the adapter again")
