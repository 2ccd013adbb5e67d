"""AdamW over named parameters, with its state in the open: moments by parameter name, so that a checkpoint can hold
them without a pickle and a resume can check that none is missing.

Update (Loshchilov and Hutter 2019, arXiv:1711.05101): m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;
p -= lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * p).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topcoat.errors import TopcoatError
from topcoat.training.settings import TrainSettings

FIRST, SECOND = "exp_avg", "exp_avg_sq"


class Optimizer:
    """torch's fused AdamW behind names. Moments exist from the start, so the first step allocates nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
        self.parameters = dict(parameters)
        self.steps = 0
        """Optimizer steps taken: the t of the bias correction."""
        self._adamw = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=0.0,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter in self.parameters.values():
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                FIRST: torch.zeros_like(parameter),
                SECOND: torch.zeros_like(parameter),
            }

    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient, then forget the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.steps += 1
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self, max_norm: float | None) -> float:
        """Scale the whole gradient down to `max_norm`; returns its norm before, over all parameters."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if max_norm is not None and norm > max_norm:
            torch._foreach_mul_(gradients, max_norm / norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """`<name>.exp_avg` and `<name>.exp_avg_sq` for every parameter."""
        return {
            f"{name}.{moment}": self._adamw.state[parameter][moment]
            for name, parameter in self.parameters.items()
            for moment in (FIRST, SECOND)
        }

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take up where `state` was saved after `steps` steps.

        Raises TopcoatError when a moment is missing, left over or of another shape.
        """
        mine = self.state()
        missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        misshapen = sorted(n for n in mine.keys() & state.keys() if mine[n].shape != state[n].shape)
        if missing or extra or misshapen:
            raise TopcoatError(
                f"the checkpoint's optimizer state does not fit: {len(missing)} moments missing, {len(extra)} unknown, "
                f"{len(misshapen)} of another shape (first: {(missing + extra + misshapen)[0]})",
                fix="resume with the recipe the run was started with",
            )
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        for parameter in self.parameters.values():
            self._adamw.state[parameter]["step"].fill_(steps)
        self.steps = steps
