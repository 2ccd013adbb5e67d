"""CUDA graphs of a run: whether they can be, said before anything is trained, and their making."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from topcoat.adapters.attach import Adapters
from topcoat.errors import Problem, TopcoatError
from topcoat.kernels.attention_varlen import WIDEST
from topcoat.kernels.graph import CudaCapture
from topcoat.model.families import FAMILIES
from topcoat.model.head import plain_head
from topcoat.model.load import Base
from topcoat.recipe.schema import Recipe
from topcoat.runs.engine import Engine
from topcoat.training.objectives.options import LossOptions
from topcoat.training.objectives.sft import sft
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.objectives.table import OBJECTIVES
from topcoat.training.on_device import graphs_problem
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
    key = "train.cuda_graphs"
    found = check_recipe(recipe, adapters) + check_engine(base, engine)
    problems = [Problem(f"{key}: {what}", where=key, fix=f"{fix}, {OFF}") for what, fix in found]
    problems = [*check_device(base), *problems]
    if problems:
        raise TopcoatError.gather(problems)


def check_device(base: Base) -> list[Problem]:
    """What is in the way of the device."""
    problem = graphs_problem(base.device.type)
    if problem is None and torch.cuda.get_device_capability(base.device) < (8, 0):
        what = "train.cuda_graphs: FlashAttention wants a GPU of compute capability 8.0 or more"
        problem = Problem(what, "train.cuda_graphs", "write train.cuda_graphs: false, or train on another GPU")
    return [] if problem is None else [problem]


def check_recipe(recipe: Recipe, adapters: Adapters) -> list[tuple[str, str]]:
    """(what is in the way, what to write) of what is trained and how."""
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


def check_engine(base: Base, engine: Engine) -> list[tuple[str, str]]:
    """The same of the model and what computes it."""
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
    waiting = rope_types(base.model) & {"dynamic", "longrope"}
    if waiting:
        found.append((f"{waiting.pop()} positions wait for the longest document's length", "train another model"))
    if plain_head(base.model) is None:
        found.append(("the head does more than multiply and cap its logits", "train another model"))
    return found


def rope_types(model: PreTrainedModel) -> set[str]:
    """How layers of a model of a known family stretch their rotary positions, "default" where they do not."""
    rotary: Any = model.get_submodule(FAMILIES[model.config.model_type].decoder).get_submodule("rotary_emb")
    return set(rotary.rope_type.values()) if isinstance(rotary.rope_type, dict) else {rotary.rope_type}


def make_replay(
    engine: Engine,
    settings: TrainSettings,
    budget_tokens: int,
    device: torch.device,
    optimizer: Optimizer,
    say: Callable[[str], None],
) -> Replay | None:
    """The graphs of micro batches of `budget_tokens`, of an engine that goes by graphs; None for others."""
    if not engine.graphs or engine.fused is None:
        return None
    assert isinstance(optimizer.trained, Flat)  # hand-written blocks train adapters, and those lie in one vector
    loss = partial(static_sft, engine.fused, options=LossOptions(settings.label_smoothing))
    return Replay(loss, optimizer.trained, budget_tokens, CudaCapture(device), say)
