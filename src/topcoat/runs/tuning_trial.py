"""One trial: an adapter on the base that is there, a short training on the slice, measured at a few points of it.

The rungs of a trial of T steps are at T / 9, T / 3 and T. At each, the loss on the rows held out for the search decides
whether the trial goes on (successive halving: Li et al. 2018, arXiv:1810.05934). Nothing stays on the base afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import FullConfig
from topcoat.data.batches import Batch, Batches
from topcoat.data.load import Dataset
from topcoat.errors import Refused
from topcoat.evaluation.loss import mean_loss
from topcoat.model.load import Base
from topcoat.recipe.schema import Recipe
from topcoat.runs.attaching import attach_to, optimizer_for
from topcoat.runs.compute import make_loss
from topcoat.runs.graphs import make_replay
from topcoat.runs.listener import Listener
from topcoat.runs.opening import RunPlan, free_memory, plan_run
from topcoat.runs.scoring import Evaluating
from topcoat.runs.session import enable_checkpointing
from topcoat.training.halving import first_line, is_out_of_memory
from topcoat.training.loop import Training, train
from topcoat.training.loss_scale import LossScale
from topcoat.training.memory import free_leftovers, memory_bytes
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.signals import StopSignals
from topcoat.training.step_rules import step_rule

RUNGS = (1, 3, 9)
"""Ninths of a trial at which it is measured."""


@dataclass
class Bench:
    """What all trials share: the base, loaded once, and the rows of the search."""

    load: Callable[[], Base]
    data: Dataset
    """The slice, and the rows held out of it."""
    folder: Path
    stop: StopSignals
    listener: Listener
    runtime_bytes: int
    loaded: Base | None = None

    @property
    def base(self) -> Base:
        """The base as it was read; loaded where there is none.

        Full fine-tuning changes it, and leaves none behind: only once that trial is over, with all that still refers to
        its model, the next one is loaded, so that two are never held.
        """
        if self.loaded is None:
            free_leftovers()
            self.loaded = self.load()
        return self.loaded

    @contextmanager
    def attached(self, recipe: Recipe) -> Iterator[tuple[Adapters, RunPlan]]:
        """The recipe's adapter on the base, and the plan of its run; afterwards the base is as it was.

        Raises Refused where memory is short.
        """
        base = self.base
        adapters = attach_to(base, self.data, recipe)
        recomputes = False
        try:
            plan = plan_run(recipe, base, adapters, self.data, self.runtime_bytes)
            plan.bill.require_fit(free_memory(base.device))
            recomputes = plan.engine.checkpointing
            if recomputes:
                enable_checkpointing(base)
            yield adapters, plan
        finally:
            if isinstance(recipe.adapter, FullConfig):
                self.loaded = None
            else:
                adapters.detach()
                if recomputes:
                    base.model.gradient_checkpointing_disable()

    def optimizer(self, recipe: Recipe, adapters: Adapters) -> Optimizer:
        """A fresh one."""
        return optimizer_for(adapters, recipe, self.folder)


class Watch:
    """The loop's stop flag: a signal, or what was decided at a rung."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals, self.verdict = signals, ""

    @property
    def stop(self) -> object | None:
        """Why the trial should end now."""
        return self.signals.stop or self.verdict or None


def run_trial(bench: Bench, recipe: Recipe, label: str, at_rung: Callable[[int, float], str]) -> str:
    """Train `recipe` on the slice. `at_rung` hears (ninths, loss) and says why the trial should end, or "".

    Returns "" for a trial that came to its end, "stopped" after a signal, or what `at_rung` said. Raises Refused where
    memory is short or the loss was no number three times in a row; the base is as it was in every case.
    """
    watch = Watch(bench.stop)
    with bench.attached(recipe) as (adapters, plan):
        base, total = bench.base, plan.steps.total
        loss = make_loss(base, adapters, plan.engine.fused, recipe.train)
        held, rungs = HeldOut(bench.data, recipe, plan, bench.listener.say), rungs_of(total)

        def validate(step: int) -> None:
            if step in rungs and watch.stop is None:
                with Evaluating(base.model):
                    watch.verdict = at_rung(rungs[step], held.mean_loss(loss))

        base.model.train()
        optimizer = bench.optimizer(recipe, adapters)
        tokens, say = plan.micro_batch_tokens, bench.listener.say
        with bench.listener.progress(label, total) as advance:
            train(
                Training(
                    parameters=adapters.parameters(),
                    loss=loss,
                    steps=plan.steps,
                    settings=recipe.train,
                    peak_learning_rate=plan.learning_rate,
                    seed=recipe.seed,
                    optimizer=optimizer,
                    scale=LossScale.for_dtype(base.compute_dtype),
                    evaluate_every=1,
                    validate=validate,
                    save=lambda best: None,
                    record=lambda row: advance(row["step"], row),
                    explain=lambda batch: "these settings do not train",
                    memory=lambda: memory_bytes(base.device),
                    stop=watch,
                    say=say,
                    rule=step_rule(adapters, total),
                    replay=make_replay(plan.engine, recipe.train, tokens, base.device, optimizer, say),
                )
            )
    if bench.stop.stop is not None:
        return "stopped"
    return watch.verdict


def rungs_of(total: int) -> dict[int, int]:
    """Step -> ninths of a trial of `total` steps; a rung of a short trial that falls on the next one is left out."""
    return {max(1, math.ceil(total * ninths / 9)): ninths for ninths in RUNGS}


class HeldOut:
    """The rows held out for the search, in the batches of training, and in smaller ones once memory ran out."""

    def __init__(self, data: Dataset, recipe: Recipe, plan: RunPlan, say: Callable[[str], None]) -> None:
        self.rows, self.say = data.validation, say
        self.packing, self.virtual_tokens = recipe.data.packing, recipe.adapter.virtual_tokens
        self._split(plan.micro_batch_tokens)

    def _split(self, budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens
        self.batches = Batches(
            self.rows,
            len(self.rows),
            budget_tokens=budget_tokens,
            packing=self.packing,
            virtual_tokens=self.virtual_tokens,
        )

    def mean_loss(self, loss: Callable[[Batch], Tensor]) -> float:
        """Mean loss over all rows. Raises Refused where one row at a time does not fit into memory."""
        while True:
            try:
                return mean_loss(loss, self.batches)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error)
                if len(self.batches) == len(self.rows):
                    raise Refused(
                        f"measuring a trial one row at a time does not fit into memory: {said}",
                        where="data.max_length",
                        fix="write a smaller data.max_length with overlong: truncate or split, "
                        "or model.quantization: {format: nf4}",
                    ) from error
            free_leftovers()
            self._split(self.budget_tokens // 2)
            self.say(f"memory ran out while measuring ({said}): batches of at most {self.budget_tokens:,} tokens")
