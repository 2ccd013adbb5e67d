"""CUDA graphs of a run: whether they can be, said before anything is trained, and their making."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from topcoat.errors import Problem, TopcoatError
from topcoat.kernels.attention_varlen import WIDEST
from topcoat.kernels.graph import CudaCapture
from topcoat.model.families import FAMILIES
from topcoat.model.head import plain_head
from topcoat.model.load import Base
from topcoat.recipe.schema import Recipe
from topcoat.recipe.uncaptured import find_uncaptured
from topcoat.runs.engine import Engine
from topcoat.training.objectives.options import LossOptions
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.on_device import graphs_problem
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.optimizers.trained import Flat
from topcoat.training.replay import Replay
from topcoat.training.settings import TrainSettings

KNOWN = "write adapter.method: lora, on a model of a family they know"
ANOTHER = "train another model"


def require_graphs(recipe: Recipe, base: Base, engine: Engine) -> None:
    """Raises TopcoatError with all that stands in the way, where the recipe asks for CUDA graphs."""
    if not recipe.train.cuda_graphs:
        return
    found = find_uncaptured(partial(_value, recipe))  # of a recipe that was built in Python
    written = (Problem(f"{dots} {what}", where=dots, fix=fix) for dots, what, fix in found)
    problems = [*check_device(base), *check_engine(base, engine), *written]
    if problems:
        raise TopcoatError.gather(problems)


def _value(recipe: Recipe, dots: str) -> object:
    section, name = dots.split(".")
    return getattr(getattr(recipe, section), name, None)


def check_device(base: Base) -> list[Problem]:
    """What is in the way of the device."""
    problem = graphs_problem(base.device.type)
    if problem is not None:
        return [problem]
    if torch.version.hip is not None or torch.cuda.get_device_capability(base.device) < (8, 0):
        return [_problem("FlashAttention wants an NVIDIA GPU of compute capability 8.0 or more", "train on such a one")]
    return []


def check_engine(base: Base, engine: Engine) -> list[Problem]:
    """What is in the way of the model and of what computes it."""
    if engine.fused is None:
        return [_problem(f"only hand-written blocks are captured ({engine.reason})", KNOWN)]
    blocks = engine.fused.decoder.blocks
    waiting = rope_types(base.model) & {"dynamic", "longrope"}
    found = (
        ("offload" in engine.policies, "what waits in host memory is not captured", "write train.recompute: block"),
        (
            base.compute_dtype not in (torch.bfloat16, torch.float16),
            "FlashAttention wants half precision",
            "write model.compute_dtype: bf16",
        ),
        (
            any(block.attention.softcap is not None for block in blocks),
            "FlashAttention has no soft cap, and this model caps its scores",
            ANOTHER,
        ),
        (
            any(block.head_dim > WIDEST or block.head_dim % 8 for block in blocks),
            f"FlashAttention takes heads of up to {WIDEST} numbers, a multiple of 8",
            ANOTHER,
        ),
        (bool(waiting), f"{' and '.join(waiting)} positions wait for the longest document's length", ANOTHER),
        (plain_head(base.model) is None, "the head does more than multiply and cap its logits", ANOTHER),
    )
    return [_problem(what, fix) for wrong, what, fix in found if wrong]


def _problem(what: str, fix: str) -> Problem:
    key = "train.cuda_graphs"
    return Problem(f"{key}: {what}", where=key, fix=f"{fix}, or write {key}: false")


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
