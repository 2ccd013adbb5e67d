"""CUDA graphs of a run: whether they can be, said before anything is trained, and their making."""

from __future__ import annotations

from collections.abc import Callable

import torch

from topcoat.adapters.attach import Adapters
from topcoat.errors import Problem, TopcoatError
from topcoat.kernels.attention_varlen import WIDEST
from topcoat.kernels.graph import Capture
from topcoat.model.fuse import FusedModel
from topcoat.model.load import Base
from topcoat.recipe.schema import Recipe
from topcoat.runs.engine import Engine
from topcoat.training.objectives.options import LossOptions
from topcoat.training.objectives.sft import sft
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.objectives.table import OBJECTIVES
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.optimizers.trained import Flat
from topcoat.training.replay import Replay
from topcoat.training.settings import TrainSettings
from topcoat.training.step_rules import STEP_RULES

KNOWN = "write adapter.method: lora, on a model of a family they know"
OFF = "or write train.cuda_graphs: false"


def require_graphs(recipe: Recipe, base: Base, adapters: Adapters, engine: Engine) -> None:
    """Raises TopcoatError with all that stands in the way, where the recipe asks for CUDA graphs."""
    if not recipe.train.cuda_graphs:
        return
    found = _of_machine(base) + _of_recipe(recipe, adapters) + _of_engine(base, engine)
    if found:
        key = "train.cuda_graphs"
        raise TopcoatError.gather([Problem(f"{key}: {what}", where=key, fix=f"{fix}, {OFF}") for what, fix in found])


def _of_machine(base: Base) -> list[tuple[str, str]]:
    """(what is in the way, what to write) of the device."""
    if base.device.type != "cuda":
        return [(f"this run computes on {base.device}, and graphs are for CUDA GPUs", "set model.device to cuda")]
    if torch.cuda.get_device_capability(base.device) < (8, 0):
        return [("FlashAttention wants a GPU of compute capability 8.0 or more", "train on another GPU")]
    return []


def _of_recipe(recipe: Recipe, adapters: Adapters) -> list[tuple[str, str]]:
    found = []
    if not recipe.data.packing:
        found.append(("padded batches have too many shapes", "write data.packing: true"))
    if OBJECTIVES[recipe.train.objective].loss is not sft:
        found.append((f"objective {recipe.train.objective} is not captured", "choose sft or completion"))
    if recipe.train.neftune_noise_alpha is not None:
        found.append(("the noise of NEFTune is drawn anew each time", "write train.neftune_noise_alpha: null"))
    if getattr(recipe.adapter, "lora_dropout", 0):
        found.append(("the masks of dropout are drawn anew each time", "write adapter.lora_dropout: 0"))
    if adapters.config.method in STEP_RULES:
        found.append((f"{adapters.config.method} changes what is computed from step to step", "choose another method"))
    return found


def _of_engine(base: Base, engine: Engine) -> list[tuple[str, str]]:
    found = []
    if engine.fused is None:
        return [(f"only hand-written blocks are captured ({engine.reason})", KNOWN)]
    if "offload" in engine.policies:
        found.append(("what waits in host memory is not captured", "write train.recompute: block"))
    if base.compute_dtype not in (torch.bfloat16, torch.float16):
        found.append(("FlashAttention wants half precision", "write model.compute_dtype: bf16"))
    blocks = engine.fused.decoder.blocks
    if any(block.attention.softcap is not None for block in blocks):
        found.append(("FlashAttention has no soft cap, and this model caps its scores", "train another model"))
    if any(block.head_dim > WIDEST or block.head_dim % 8 for block in blocks):
        found.append((f"FlashAttention takes heads of up to {WIDEST} numbers, a multiple of 8", "train another model"))
    return found


def make_replay(
    fused: FusedModel,
    settings: TrainSettings,
    budget_tokens: int,
    optimizer: Optimizer,
    capture: Capture,
    say: Callable[[str], None],
) -> Replay:
    """The graphs of micro batches of `budget_tokens` in a run with these settings."""
    assert isinstance(optimizer.trained, Flat)  # hand-written blocks train adapters, and those lie in one vector
    options = LossOptions(settings.label_smoothing)
    gradients = optimizer.trained.gradients
    return Replay(lambda batch: static_sft(fused, batch, options), gradients, budget_tokens, capture, say)
