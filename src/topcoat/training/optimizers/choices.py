"""The table of optimizers, and the one function that makes what a recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from topcoat.errors import TopcoatError
from topcoat.kernels.bitsandbytes_library import bitsandbytes_loads
from topcoat.training.on_device import optimizer_problem
from topcoat.training.optimizers.adamw import AdamW
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.optimizers.bitsandbytes import BitsAndBytesAdamW
from topcoat.training.optimizers.moments import FileMoments, MemoryMoments
from topcoat.training.optimizers.trained import Flat, Group, Separate, Trained
from topcoat.training.settings import TrainSettings


@dataclass(frozen=True)
class Choice:
    """One optimizer: how it is made. Its bytes and devices are in `sizes.py`."""

    make: Callable[[Trained, TrainSettings, Path], Optimizer]
    needs_bitsandbytes: bool = False


def _bitsandbytes(bits: int, *, paged: bool) -> Callable[[Trained, TrainSettings, Path], Optimizer]:
    return lambda trained, settings, folder: BitsAndBytesAdamW(trained, settings, bits=bits, paged=paged)


OPTIMIZERS: dict[str, Choice] = {
    "adamw": Choice(
        lambda trained, settings, folder: AdamW(trained, settings, MemoryMoments(trained.size, trained.device))
    ),
    "adamw_8bit": Choice(_bitsandbytes(8, paged=False), needs_bitsandbytes=True),
    "paged_adamw_8bit": Choice(_bitsandbytes(8, paged=True), needs_bitsandbytes=True),
    "paged_adamw_32bit": Choice(_bitsandbytes(32, paged=True), needs_bitsandbytes=True),
    "paged_adamw": Choice(
        lambda trained, settings, folder: AdamW(trained, settings, FileMoments(trained.size, folder))
    ),
}


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    *,
    folder: Path,
    flat: bool = True,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
) -> Optimizer:
    """The optimizer that `settings.optimizer` names, over `parameters`.

    `flat` moves values and gradients into one buffer each (adapters); without it they stay apart (full fine-tuning).
    `rate_factor` of a name multiplies the learning rate there: LoRA+ moves lora_B faster than lora_A. Weight decay is
    for matrices; norms, biases and other vectors do not decay. `folder` takes what `paged_adamw` keeps on a disk,
    where `settings.optimizer_folder` names none.

    Raises:
        TopcoatError: the optimizer does not run on this device, needs a library that is not there, or a full disk.
    """
    _require(settings.optimizer, next((p.device.type for p in parameters.values()), "cpu"))

    def group_of(name: str, parameter: nn.Parameter) -> Group:
        return Group(rate_factor(name), decays=parameter.dim() >= 2)

    trained = (Flat if flat else Separate)(parameters, group_of)
    return OPTIMIZERS[settings.optimizer].make(trained, settings, Path(settings.optimizer_folder or folder))


def _require(optimizer: str, device: str) -> None:
    problem = optimizer_problem(optimizer, device)
    if problem is not None:
        raise TopcoatError.gather([problem])
    if OPTIMIZERS[optimizer].needs_bitsandbytes and not bitsandbytes_loads():
        raise TopcoatError(
            f"train.optimizer {optimizer} needs bitsandbytes, which is not installed or does not load here",
            where="train.optimizer",
            fix="install it (pip install 'topcoat[bnb]'), or write optimizer: adamw",
        )
