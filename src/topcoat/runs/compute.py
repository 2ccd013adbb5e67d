"""How a run's loss is computed: the objective on this model, in its precision.

An adapter's model computes in its own dtype. Full fine-tuning keeps float32 masters and computes in the compute dtype
under autocast, so that an update smaller than 2^-9 of a weight is not lost. Label smoothing, class weights and the
noise of NEFTune belong to training: a model in eval mode is measured without them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import FullConfig
from topcoat.data.batches import Batch
from topcoat.model.fuse import FusedModel
from topcoat.model.load import Base
from topcoat.training.neftune import noisy_embeddings
from topcoat.training.objectives.hidden import spans
from topcoat.training.objectives.options import PLAIN, LossOptions
from topcoat.training.objectives.table import OBJECTIVES
from topcoat.training.settings import TrainSettings

PLAIN_SETTINGS = TrainSettings()


def precision(base: Base, adapters: Adapters) -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which `base` computes in its compute dtype."""
    if isinstance(adapters.config, FullConfig) and base.compute_dtype != torch.float32:
        return lambda: torch.autocast(base.device.type, dtype=base.compute_dtype)
    return nullcontext


def make_loss(
    base: Base,
    adapters: Adapters,
    fused: FusedModel | None = None,
    settings: TrainSettings = PLAIN_SETTINGS,
    class_weights: Tensor | None = None,
) -> Callable[[Batch], Tensor]:
    """Micro batch -> the summed loss of its targets, by the fast path where there is one.

    `class_weights` (K,) are those of the labels, where the settings ask for some.
    """
    context, objective = precision(base, adapters), OBJECTIVES[settings.objective]
    options = LossOptions(settings.label_smoothing, class_weights)

    def loss(batch: Batch) -> Tensor:
        with context(), noise(batch):
            return objective.loss(base.model, batch, fused, options if base.model.training else PLAIN)

    def noise(batch: Batch) -> AbstractContextManager[object]:
        if settings.neftune_noise_alpha is None or not base.model.training:
            return nullcontext()
        return noisy_embeddings(base.model, spans(batch), settings.neftune_noise_alpha)

    return loss
