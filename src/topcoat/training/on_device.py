"""Settings of the loop that a kind of device cannot do: a plan refuses them in the words of a run. No torch here.

A device is "cpu", "cuda" or another of torch's names; the settings are those of `training/settings.py`.
"""

from __future__ import annotations

from topcoat.errors import Problem, TopcoatError
from topcoat.training.optimizers.sizes import DEVICES
from topcoat.training.settings import Recompute, TrainSettings

_OTHER_OPTIMIZER = {
    "cpu": "write optimizer: adamw, or paged_adamw to keep the moments on a disk",
    "cuda": "write optimizer: adamw, or paged_adamw_32bit to let the driver move the moments to the host",
}


def require_device(settings: TrainSettings, device: str) -> None:
    """Raises TopcoatError with everything in `settings` that does not run on `device`."""
    asked = (
        optimizer_problem(settings.optimizer, device),
        offload_problem(settings.recompute, device),
        graphs_problem(device) if settings.cuda_graphs else None,
    )
    problems = [problem for problem in asked if problem is not None]
    if problems:
        raise TopcoatError.gather(problems)


def optimizer_problem(optimizer: str, device: str) -> Problem | None:
    """Why this optimizer cannot be had; None where it can."""
    kinds = DEVICES[optimizer]
    if device in kinds:
        return None
    what = f"train.optimizer {optimizer} runs on {' and '.join(kinds)}, and this run is on {device}"
    return Problem(what, "train.optimizer", _OTHER_OPTIMIZER.get(device, "train on a CPU or a CUDA GPU"))


def offload_problem(recompute: Recompute, device: str) -> Problem | None:
    """Why nothing can wait in host memory; None where it can, or nothing has to."""
    if recompute != "offload" or device == "cuda":
        return None
    what = (
        "train.recompute is offload, which keeps activations in host memory, and this run computes on "
        f"{device}, where they are already"
    )
    return Problem(what, "train.recompute", "write recompute: block, or auto")


def graphs_problem(device: str) -> Problem | None:
    """Why there are no CUDA graphs; None where there are."""
    if device == "cuda":
        return None
    what = f"train.cuda_graphs: this run computes on {device}, and graphs are for CUDA GPUs"
    return Problem(what, "train.cuda_graphs", "write train.cuda_graphs: false, or train on a GPU")
