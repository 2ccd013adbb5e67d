"""Stop a run that has gone wrong in silence: a loss that is no number, a module that nothing reaches.

Pitfalls P03 (loss 0, gradient NaN, for hours) and P07 (checkpointing froze half the layers and the run looked normal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from topcoat.adapters.token_rows import DELTA as TOKEN_ROWS
from topcoat.errors import Refused

PATIENCE = 3  # non-finite steps in a row that end the run; a single one is skipped and counted


class FiniteGuard:
    """Counts steps whose loss or gradient is not finite, and ends the run at the third in a row."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def allows(self, step: int, loss: float, grad_norm: float, culprit: Callable[[], str]) -> bool:
        """True if the step may update the adapter. `culprit` is asked, only when needed, what went wrong first.

        Raises Refused at the third bad step in a row; the adapter is still that of the last good step.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        if self._in_a_row < PATIENCE:
            return False
        raise Refused(
            f"loss {loss} and gradient norm {grad_norm} at step {step}, {PATIENCE} such steps in a row; {culprit()}",
            where=f"step {step}",
            fix="lower train.learning_rate, compute in fp32 (model.compute_dtype: fp32), or look at the rows named; "
            "the last good adapter is in the newest checkpoint",
        )


def first_nonfinite(model: nn.Module, forward: Callable[[], object]) -> str:
    """Run `forward` and name the first module whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            bad = any(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors)
            if bad and not found:
                found.append(f"{name} ({next(t.dtype for t in tensors if isinstance(t, torch.Tensor))})")

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in hooks:
            handle.remove()
    return f"first non-finite output: {found[0]}" if found else "the forward is finite, the backward is not"


def require_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """After the first backward every module that trains must have a gradient that is not all zero.

    Asked of a module, not of a parameter: lora_A's gradient is exactly zero while lora_B is, and gradients may lie in a
    buffer that was zero before, so that none of them is None. Raises Refused with the modules that would learn nothing.
    """
    if not parameters:
        raise Refused(
            "0 trainable parameters: nothing would be learned",
            where="adapter.target_modules",
            fix="write target_modules: all-linear",
        )
    reached: dict[str, bool] = {}
    for name, p in parameters.items():
        if name.endswith(TOKEN_ROWS):
            continue  # rows of tokens that the first batch may not hold
        module = name.rpartition(".")[0] or name
        reached[module] = reached.get(module, False) or (p.grad is not None and bool(p.grad.any()))
    silent = [module for module, has_gradient in reached.items() if not has_gradient]
    if silent:
        raise Refused(
            f"after the first backward {len(silent)} of {len(reached)} trained modules have no gradient (first: "
            f"{silent[0]}); nothing would be learned there",
            where="the first backward",
            fix="leave these modules out of adapter.target_modules; if they should learn, this model's forward does "
            "not reach them",
        )
