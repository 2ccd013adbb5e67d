"""Tiny models ready to train, examples of drawn lengths, and a loop that writes nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from topcoat.adapters.attach import Adapters, attach
from topcoat.adapters.settings import AdapterConfig, FullConfig, LoraConfig
from topcoat.data.batches import Batch, StepPlan, micro_batches, worst_batch
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.render import Example
from topcoat.data.rows import Row
from topcoat.model.attention import NAME, register
from topcoat.model.tiny import tiny_model
from topcoat.training.guards import first_nonfinite
from topcoat.training.loop import Progress, Training
from topcoat.training.loss_scale import LossScale
from topcoat.training.objectives.sft import sft
from topcoat.training.optimizers.choices import make_optimizer
from topcoat.training.settings import TrainSettings


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where the machine has such a disk: some tests make thousands of fsyncs, none is about the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def make_examples(lengths: Sequence[int], seed: int = 0, context: float = 0.4) -> list[Example]:
    """Random tokens; about a share `context` of them is not trained, but never all of an example of two or more."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for line, n in enumerate(lengths, 1):
        ids = torch.randint(3, 300, (n,), generator=generator).tolist()
        ignored = (torch.rand(n, generator=generator) < context).tolist()
        labels = [IGNORE_INDEX if skip else token for token, skip in zip(ids, ignored, strict=True)]
        labels[-1] = ids[-1]
        found.append(Example(ids, labels, Row({}, "rows.jsonl", line)))
    return found


@pytest.fixture(scope="session")
def examples() -> Callable[..., list[Example]]:
    return make_examples


def make_ready(
    model_type: str = "llama",
    config: AdapterConfig | None = None,
    attention: str = NAME,
    disturbed: bool = True,
    **tiny: Any,
) -> tuple[PreTrainedModel, Adapters]:
    register()
    model = tiny_model(model_type, **tiny)
    model.set_attn_implementation(attention)
    adapters = attach(model, config or LoraConfig(r=4))
    if disturbed:  # lora_B away from zero, so that every gradient says something
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, p in adapters.parameters().items():
                if name.endswith("lora_B"):
                    p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return model, adapters


@pytest.fixture(scope="session")
def ready() -> Callable[..., tuple[PreTrainedModel, Adapters]]:
    """(model_type, config, attention) -> a tiny model of transformers with an adapter on it, and the adapters."""
    return make_ready


class FixedSteps:
    """A step plan over examples, as runs/opening.py makes it."""

    def __init__(self, rows: list[Example], steps: int, batch_size: int, budget: int, packing: bool) -> None:
        self.rows, self.budget, self.packing, self.total = rows, budget, packing, steps
        self.plan = StepPlan([len(e.input_ids) for e in rows], seed=1, max_steps=steps, batch_size=batch_size)

    def micro_batches(self, step: int) -> list[Batch]:
        chosen = self.plan.step_examples(step)
        return micro_batches(self.rows, chosen, budget_tokens=self.budget, packing=self.packing)

    def limit(self, tokens: int) -> None:
        self.budget = tokens

    def worst(self) -> Batch:
        return worst_batch(self.plan, self.rows, budget_tokens=self.budget, packing=self.packing)


@dataclass
class Stop:
    stop: object | None = None


@dataclass
class Loop:
    """A loop and what it told the world."""

    run: Training
    model: nn.Module
    adapters: Adapters
    rows: list[dict[str, Any]] = field(default_factory=list)
    saves: list[tuple[int, bool]] = field(default_factory=list)

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if "loss" in row]


@pytest.fixture(scope="session")
def loop() -> Callable[..., Loop]:
    """A loop over a tiny model; keywords set what the test is about."""

    def make(
        *,
        lengths: Sequence[int] = (9, 14, 5, 20, 11, 7, 16, 12),
        rows: list[Example] | None = None,
        steps: int = 6,
        batch_size: int = 4,
        budget: int = 32,
        packing: bool = True,
        seed: int = 3,
        rate: float = 1e-2,
        config: AdapterConfig | None = None,
        scale: LossScale | None = None,
        validate: Callable[[int], float | None] = lambda step: None,
        evaluate_every: int = 1000,
        progress: Progress | None = None,
        loss: Callable[[nn.Module, Batch], torch.Tensor] = sft,
        stop: Stop | None = None,
        ready: Callable[..., Any] = make_ready,
        folder: Path | None = None,
        **train: Any,
    ) -> Loop:
        model, adapters = ready(config=config, disturbed=False)
        model.train()
        settings = TrainSettings(**{"lr_scheduler_type": "constant", "warmup_ratio": 0.0} | train)
        data = rows or make_examples(lengths)
        told: list[dict[str, Any]] = []
        saves: list[tuple[int, bool]] = []
        run = Training(
            parameters=adapters.parameters(),
            loss=lambda batch: loss(model, batch),
            steps=FixedSteps(data, steps, batch_size, budget, packing),
            settings=settings,
            peak_learning_rate=rate,
            seed=seed,
            optimizer=make_optimizer(
                adapters.parameters(),
                settings,
                folder=folder or Path(tempfile.gettempdir()),
                flat=not isinstance(config, FullConfig),
            ),
            scale=scale or LossScale(),
            evaluate_every=evaluate_every,
            validate=validate,
            save=lambda best: saves.append((run.progress.step, best)),
            record=told.append,
            explain=lambda batch: (
                f"rows {batch.rows}; " + first_nonfinite(model, lambda: loss(model, batch))  # as runs/session.py does
            ),
            memory=lambda: 0,
            stop=stop or Stop(),
            progress=progress or Progress(),
        )
        return Loop(run, model, adapters, told, saves)

    return make
