"""AdaLoRA's allocation of ranks, in the loop: what each direction matters, and which ones the budget keeps.

After each update, with the gradient it was made from (divided by the loss scale and clipped, as the update saw it):

    I = |w dL/dw|;   sens <- b1 sens + (1 - b1) I;   unc <- b2 unc + (1 - b2) |I - sens|;   score = sens * unc
    S_i = score(E_i) + mean over column i of score(P) + mean over row i of score(Q)

Every `deltaT` steps the b0 - b(t) directions with the smallest S, over all linears together, get E_i = 0; their P and Q
stay, so that they can come back. At step T - tf this happens once more, and from then on those directions stay zero.

PEFT and the authors' code cut at the value of the k-th smallest S, which takes more than k where several are equal;
here exactly k are taken, those of earlier linears first, so the budget is met to the unit. Paper: Zhang et al. 2023,
arXiv:2303.10512, section 3; which gradient and which weights (the updated ones) follows the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.adalora_budget import budget_of, resolved
from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import AdaloraConfig

TELLS = 20  # times in a run that metrics.jsonl says every linear's rank
_FACTORS = ("lora_A", "lora_E", "lora_B")


class RankAllocation:
    """The rule of one AdaLoRA run (see `training/step_rules.py`)."""

    def __init__(self, layers: Mapping[str, AdaLora], config: AdaloraConfig) -> None:
        """`config` is resolved: it knows the run's steps."""
        self.layers = dict(layers)
        self.config = config
        self.budget = budget_of(config, len(self.layers))
        self.sensitivity = {name: torch.zeros_like(p.data) for name, p in self._parameters().items()}
        self.uncertainty = {name: torch.zeros_like(value) for name, value in self.sensitivity.items()}
        self.chosen = {path: torch.ones_like(layer.kept) for path, layer in self.layers.items()}
        """Path -> the directions (init_r,) that the last look left."""

    def penalty(self) -> Tensor | None:
        """orth_reg_weight times the mean over all P and Q of how far each is from orthonormal."""
        if not self.config.orth_reg_weight:
            return None
        terms = [term for layer in self.layers.values() for term in layer.skewness()]
        return self.config.orth_reg_weight * torch.stack(terms).mean()

    @torch.no_grad()
    def after_update(self, step: int, factor: float | None) -> None:
        """Take the step's gradient into the scores, and ranks away where that is due."""
        if step >= self.budget.settled and self._is_frozen():
            for layer in self.layers.values():
                layer.hide(layer.kept)  # the update has moved them from zero
            return
        if step < self.budget.settled and factor is not None:
            self._watch(factor)
        if step >= self.budget.settled:
            self.chosen = self._best(self.budget.last)
            for path, layer in self.layers.items():
                layer.keep(self.chosen[path])
        elif step > self.budget.tinit and step % self.config.deltaT == 0:
            self.chosen = self._best(self.budget.at(step))
            for path, layer in self.layers.items():
                layer.hide(self.chosen[path])

    def settled(self, step: int) -> bool:
        """Whether the ranks are those of the end."""
        return step >= self.budget.settled

    def figures(self, step: int) -> dict[str, Any]:
        """The budget, and now and then every linear's rank."""
        every = -(-self.budget.total // TELLS)
        told: dict[str, Any] = {"budget": self.budget.at(step)}
        if step in (1, self.budget.settled, self.budget.total) or (step % every == 0 and not self.settled(step)):
            told["ranks"] = {path: int(kept.sum()) for path, kept in self.chosen.items()}
        return told

    def state(self) -> dict[str, Tensor]:
        """Scores and the last choice, by parameter and path."""
        found = {f"{name}.sensitivity": value for name, value in self.sensitivity.items()}
        found |= {f"{name}.uncertainty": value for name, value in self.uncertainty.items()}
        return found | {f"{path}.chosen": kept for path, kept in self.chosen.items()}

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"{path}.{name}": layer.get_parameter(name) for path, layer in self.layers.items() for name in _FACTORS}

    def _is_frozen(self) -> bool:
        """Every budget's end is below its start, so something is left out from the moment the ranks stand."""
        return not bool(torch.stack([layer.kept.all() for layer in self.layers.values()]).all())

    def _watch(self, factor: float) -> None:
        b1, b2 = self.config.beta1, self.config.beta2
        for name, parameter in self._parameters().items():
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs_().mul_(abs(factor))
            mean = self.sensitivity[name].mul_(b1).add_(now, alpha=1 - b1)
            self.uncertainty[name].mul_(b2).add_((now - mean).abs_(), alpha=1 - b2)

    def scores(self) -> dict[str, Tensor]:
        """Path -> S (init_r,)."""
        found = {}
        for path in self.layers:
            A, E, B = (self.sensitivity[f"{path}.{n}"] * self.uncertainty[f"{path}.{n}"] for n in _FACTORS)
            found[path] = E[:, 0] + A.mean(1) + B.mean(0)
        return found

    def _best(self, budget: int) -> dict[str, Tensor]:
        """Path -> which directions (init_r,) are among the `budget` best of all."""
        scores = self.scores()
        order = torch.cat(list(scores.values())).argsort(stable=True)
        kept = torch.ones(len(order), dtype=torch.bool, device=order.device)
        kept[order[: self.budget.first - budget]] = False
        parts = kept.split([len(score) for score in scores.values()])
        return {path: self.chosen[path].copy_(part) for path, part in zip(scores, parts, strict=True)}


def rank_allocation(adapters: Adapters, total_steps: int) -> RankAllocation:
    """The allocation of a run of `total_steps`; `adapters.config` gets the schedule it will follow, for the files.

    Raises TopcoatError for a schedule that such a run has no room for.
    """
    assert isinstance(adapters.config, AdaloraConfig)
    adapters.config = resolved(adapters.config, total_steps)
    layers = {path: layer for path, layer in adapters.layers.items() if isinstance(layer, AdaLora)}
    return RankAllocation(layers, adapters.config)
