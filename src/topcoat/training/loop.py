"""The training loop: one optimizer step after another, readable in one sitting.

    loss of a step = sum over its target tokens / their number in the whole step

so it does not matter how the step's examples were packed or split into micro batches. Everything the next step depends
on is in the parameters, the optimizer's moments, the loss scale and `Progress`; order, packing and dropout are pure
functions of the seed and the step. That is why a resumed run equals an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from topcoat.data.batches import Batch
from topcoat.errors import Interrupted
from topcoat.training.guards import FiniteGuard, require_gradients
from topcoat.training.halving import within_memory
from topcoat.training.loss_scale import LossScale
from topcoat.training.memory import free_leftovers
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.replay import Replay
from topcoat.training.rng import private_randomness, seed_micro_batch
from topcoat.training.schedule import learning_rate, warmup_steps
from topcoat.training.settings import TrainSettings
from topcoat.training.step_rules import NoRule, StepRule


class Steps(Protocol):
    """The data as the loop sees it: how many steps there are, and each step's micro batches."""

    total: int

    def micro_batches(self, step: int) -> list[Batch]: ...

    def worst(self) -> Batch: ...

    def limit(self, tokens: int) -> None:
        """Micro batches of at most `tokens` positions from here on."""


class StopFlag(Protocol):
    """Something that may ask the loop to save and stop."""

    @property
    def stop(self) -> object | None: ...


@dataclass
class Progress:
    """Where a run stands; together with parameters, moments and loss scale all that a resume needs."""

    step: int = 0
    """The next step to run."""
    tokens: int = 0
    target_tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    evaluated_step: int = 0
    """The last step whose evaluation is done; a run stopped during an evaluation makes it up first."""
    elapsed_s: float = 0.0
    skipped_steps: int = 0
    micro_batch_tokens: int | None = None
    """Most positions of a micro batch since memory ran out; None while it has not."""
    ended: str | None = None
    """Why the run is over: "finished", "early stopping"; None while it can go on."""


@dataclass
class Training:
    """What the loop works on and whom it tells."""

    parameters: Mapping[str, nn.Parameter]
    loss: Callable[[Batch], Tensor]
    """A micro batch -> the summed loss of its target tokens, float32."""
    steps: Steps
    settings: TrainSettings
    peak_learning_rate: float
    seed: int
    optimizer: Optimizer
    scale: LossScale
    evaluate_every: int
    validate: Callable[[int], float | None]
    """Step -> mean validation loss, or None without validation rows; may raise Interrupted once `stop` is set."""
    save: Callable[[bool], None]
    """Write a checkpoint now; True if the adapter is the best so far."""
    record: Callable[[dict[str, Any]], None]
    """One row of metrics.jsonl."""
    explain: Callable[[Batch], str]
    """What went wrong first in a micro batch whose loss is not finite, and which rows it holds."""
    memory: Callable[[], int]
    stop: StopFlag
    progress: Progress = field(default_factory=Progress)
    say: Callable[[str], None] = lambda text: None
    """One line of news."""
    rule: StepRule = field(default_factory=NoRule)
    """What the method does in each step beside the update."""
    probed: bool = False
    """The largest micro batch has been computed already."""
    replay: Replay | None = None
    """Computes micro batches by CUDA graphs, where the run asked for them."""


def train(run: Training) -> Progress:
    """Run the steps that are left; returns where it ended. A stop asked for in between saves and leaves."""
    with private_randomness():
        guard = FiniteGuard()
        if run.progress.micro_batch_tokens is not None:
            run.steps.limit(run.progress.micro_batch_tokens)
        if run.progress.step == 0 and not run.probed:
            probe(run)
        elif _evaluation_is_due(run):
            _after_step(run)
        while run.stop.stop is None and run.progress.ended is None and run.progress.step < run.steps.total:
            _one_step(run, guard)
            _after_step(run)
        if run.stop.stop is None and run.progress.ended is None:
            run.progress.ended = "finished"
        return run.progress


def probe(run: Training) -> None:
    """Forward and backward of the largest micro batch, thrown away: memory fails in the first minute or never.

    What it touches stays allocated, so the steps after it are no slower than the rest. Before the first step it also
    checks that every trainable parameter is reached (pitfalls P07, P23). Raises Refused where one example alone does
    not fit.
    """
    free_leftovers()  # of loading and checking
    within_memory(run, [run.steps.worst()], lambda: [run.steps.worst()], lambda batches: _probe(run, batches[0]))
    run.probed = True


def _probe(run: Training, batch: Batch) -> None:
    seed_micro_batch(run.seed, 0, 0)
    for _ in range(1 if run.replay is None else 2):  # the second captures, which takes memory too
        loss = _add_gradient(run, batch, run.scale.value / max(1, batch.n_target_tokens))
    if run.progress.step == 0 and batch.n_target_tokens and bool(torch.isfinite(loss)):
        require_gradients(run.parameters)
    run.optimizer.zero_grad()


def _one_step(run: Training, guard: FiniteGuard) -> None:
    """Gradients of all micro batches, one update, one row of metrics."""
    began = time.perf_counter()
    step, total = run.progress.step, run.steps.total
    run.progress.step = step + 1
    batches = run.steps.micro_batches(step)
    targets = sum(batch.n_target_tokens for batch in batches)  # known before the first micro batch
    tokens = sum(batch.n_tokens for batch in batches)
    if targets == 0:  # nothing to learn from: 0 / 0 would be NaN (pitfall P02)
        run.progress.skipped_steps += 1
        run.rule.after_update(step + 1, None)
        return
    loss, suspect = within_memory(
        run, batches, lambda: run.steps.micro_batches(step), lambda batches: _gradients(run, step, batches, targets)
    )
    penalty = _add_penalty(run)
    norm = run.optimizer.clip(run.settings.max_grad_norm, run.scale.value)
    warmup = warmup_steps(run.settings, total)
    rate = learning_rate(step, total, warmup, run.peak_learning_rate, run.settings.lr_scheduler_type)
    if _may_update(run, guard, step, loss, norm, suspect):
        run.optimizer.step(rate, partial(run.rule.after_update, step + 1))
    else:
        run.progress.skipped_steps += 1
        run.optimizer.zero_grad()
        run.rule.after_update(step + 1, None)
    seconds = time.perf_counter() - began
    run.progress.elapsed_s += seconds
    run.progress.tokens += tokens
    run.progress.target_tokens += targets
    run.record(
        {
            "step": step + 1,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": tokens,
            "target_tokens": targets,
            "tokens_per_s": tokens / seconds,
            "memory_bytes": run.memory(),
            "elapsed_s": run.progress.elapsed_s,
            **penalty,
            **run.rule.figures(step + 1),
        }
    )


def _gradients(run: Training, step: int, batches: Sequence[Batch], targets: int) -> tuple[float, Batch]:
    """Add up the gradients of a step's micro batches; its loss, and the batch to suspect if that is not finite."""
    loss, suspect = 0.0, batches[0]
    for micro, batch in enumerate(batches):
        seed_micro_batch(run.seed, step, micro)
        micro_loss = _add_gradient(run, batch, run.scale.value / targets)
        if math.isfinite(loss) and not bool(torch.isfinite(micro_loss)):
            suspect = batch  # the first that went wrong
        loss += float(micro_loss) / targets
    return loss, suspect


def _add_gradient(run: Training, batch: Batch, factor: float) -> Tensor:
    """Add the gradient of factor * loss of a micro batch to the parameters'; its loss."""
    if run.replay is not None:
        return run.replay(batch, factor)
    loss = run.loss(batch)
    (loss * factor).backward()
    return loss.detach()


def _add_penalty(run: Training) -> dict[str, float]:
    """Add the gradient of the rule's penalty, if it has one, to that of the step's mean loss; its figure."""
    penalty = run.rule.penalty()
    if penalty is None:
        return {}
    (penalty * run.scale.value).backward()
    return {"penalty": float(penalty.detach())}


def _may_update(run: Training, guard: FiniteGuard, step: int, loss: float, norm: float, suspect: Batch) -> bool:
    """False for a step whose loss or gradient is not finite; fp16 first tries a smaller loss scale."""
    if math.isfinite(loss) and math.isfinite(norm):
        run.scale.succeeded()
    elif math.isfinite(loss) and run.scale.overflowed():
        return False
    return guard.allows(step + 1, loss, norm, lambda: run.explain(suspect))


def _after_step(run: Training) -> None:
    """Evaluate and save where that is due."""
    progress, settings = run.progress, run.settings
    last = progress.step == run.steps.total
    best = False
    evaluates = _evaluation_is_due(run)
    if evaluates:
        with suppress(Interrupted):  # asked to stop meanwhile: the step is saved all the same
            best = _evaluate(run)
    by_count = settings.save_every is not None and progress.step % settings.save_every == 0
    due = by_count or (settings.save_every is None and evaluates)
    if due or best or last or progress.ended or run.stop.stop is not None:
        run.save(best)


def _evaluation_is_due(run: Training) -> bool:
    """True between a step that an evaluation follows and the end of that evaluation."""
    step = run.progress.step
    return run.progress.evaluated_step < step and (step % run.evaluate_every == 0 or step == run.steps.total)


def _evaluate(run: Training) -> bool:
    """Validation loss now; True if it is the best so far. Sets `ended` when patience has run out."""
    progress = run.progress
    loss = run.validate(progress.step)
    progress.evaluated_step = progress.step
    if loss is None:
        return False
    run.record({"step": progress.step, "validation_loss": loss})
    if not run.rule.settled(progress.step):
        return False  # neither a result nor a reason to stop
    if math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
        progress.best_loss, progress.best_step, progress.evaluations_without_gain = loss, progress.step, 0
        return True
    progress.evaluations_without_gain += 1
    patience = run.settings.early_stopping_patience
    if patience is not None and progress.evaluations_without_gain >= patience:
        progress.ended = "early stopping"
    return False
