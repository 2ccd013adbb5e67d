"""A run folder and a training loop, bound together: what a step records, what a checkpoint holds, how a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import FullConfig
from topcoat.data.batches import Batch
from topcoat.data.load import Dataset
from topcoat.errors import Refused, TopcoatError
from topcoat.files import write_file
from topcoat.model.load import Base
from topcoat.recipe.load import dump_recipe
from topcoat.recipe.schema import Recipe
from topcoat.runs.attaching import optimizer_for
from topcoat.runs.compute import make_loss
from topcoat.runs.folder import RunFolder, read_json, write_json
from topcoat.runs.graphs import make_replay
from topcoat.runs.listener import Advance, Listener, Silent
from topcoat.runs.opening import RunPlan
from topcoat.runs.receipt import checkpoint_identity, receipt
from topcoat.runs.scoring import Scorer, Scores
from topcoat.training.checkpoint import Checkpoint, Checkpoints
from topcoat.training.guards import first_nonfinite
from topcoat.training.loop import Progress, Training
from topcoat.training.loss_scale import LossScale
from topcoat.training.memory import memory_bytes
from topcoat.training.metrics import MetricsLog
from topcoat.training.objectives.labels import balanced
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.patience import save_with_patience
from topcoat.training.replay import Replay
from topcoat.training.signals import StopSignals
from topcoat.training.step_rules import NoRule, StepRule, step_rule
from topcoat.training.trackers import Tracker, trackers

PROBES, PROBE_TOKENS = 8, 256  # held-out prompts kept for proofs; float32 logits of each are held at once

T = TypeVar("T")


@dataclass
class Session:
    """One run between its folder and the loop."""

    folder: RunFolder
    recipe: Recipe
    base: Base
    adapters: Adapters
    data: Dataset
    plan: RunPlan
    scorer: Scorer
    stop: StopSignals
    listener: Listener
    checkpoints: Checkpoints
    optimizer: Optimizer
    scale: LossScale
    trackers: list[Tracker]
    receipt: dict[str, Any]
    """What identifies the run (`runs/receipt.py`)."""
    metrics: MetricsLog = field(init=False)
    """Opened by `begin`, or with the checkpoint that the run goes on from; `samples` too."""
    samples: MetricsLog = field(init=False)
    progress: Progress = field(default_factory=Progress)
    rule: StepRule = field(default_factory=NoRule)
    replay: Replay | None = None
    """The run's CUDA graphs, where it asked for them."""
    probed: bool = False
    """The largest micro batch has been computed already (`runs/rehearsal.py`)."""
    begun: bool = False
    """The folder holds the run: its recipe, its logs and a checkpoint."""
    early: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics from before that."""

    def begin(self) -> None:
        """Write what identifies the run and its first checkpoint; nothing for a run that went on from one.

        Only now: what is refused before its first step leaves a folder that another recipe can take.
        """
        if self.begun:
            return
        folder = self.folder
        write_file(folder.recipe, dump_recipe(self.recipe))
        write_json(folder.receipt, self.receipt)
        write_json(folder.plan, self.plan.as_json())
        held_out = (self.data.validation or self.data.train)[:PROBES]
        write_json(folder.probe, {"prompts": [example.input_ids[:PROBE_TOKENS] for example in held_out]})
        self._open_logs()
        self.metrics.truncate(0)
        self.samples.truncate(0)
        self.begun = True
        for row in self.early:
            self._record(row, lambda done, figures: None)
        self.save(False)  # step 0: a disk that cannot hold a checkpoint says so now, not at the end (P30, P31)
        self.checkpoints.require_room(folder.checkpoints / "step-00000000")

    def _open_logs(self) -> None:
        self.metrics, self.samples = MetricsLog(self.folder.metrics), MetricsLog(self.folder.samples)

    def base_scores(self, listener: Listener) -> Scores:
        """Scores of the base before anything is trained; a resumed run reads those of its first start."""
        if self.folder.results.exists():
            stored = read_json(self.folder.results)
            answers = tuple(sample["base"] for sample in stored["samples"])
            return Scores.read(stored["base"], answers)
        with nullcontext() if isinstance(self.adapters.config, FullConfig) else self.adapters.off():
            scores = self.scorer.base_scores(listener)
        questions = self.scorer.questions
        write_json(
            self.folder.results,
            {
                "rows": len(questions),
                "base": scores.as_json(),
                "samples": [
                    {"prompt": q.prompt, "reference": q.reference, "base": a}
                    for q, a in zip(questions, scores.answers, strict=True)
                ],
            },
        )
        return scores

    def loop(self, advance: Advance) -> Training:
        """The loop's view of this run."""
        self.base.model.train()
        return Training(
            parameters=self.adapters.parameters(),
            loss=make_loss(self.base, self.adapters, self.plan.engine.fused, self.recipe.train, self.class_weights()),
            steps=self.plan.steps,
            settings=self.recipe.train,
            peak_learning_rate=self.plan.learning_rate,
            seed=self.recipe.seed,
            optimizer=self.optimizer,
            scale=self.scale,
            evaluate_every=self.plan.evaluate_every,
            validate=self._validate,
            save=self.save,
            record=lambda row: self._record(row, advance),
            explain=self._explain,
            memory=lambda: memory_bytes(self.base.device),
            stop=self.stop,
            progress=self.progress,
            rule=self.rule,
            say=self.listener.say,
            probed=self.probed,
            replay=self.replay,
        )

    def class_weights(self) -> Tensor | None:
        """Weights (K,) of the labels, where the recipe asks for them."""
        return balanced(self.data.label_counts()) if self.recipe.train.class_weights is not None else None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Parameters, moments, loss scale, progress and logs as they were when `checkpoint` was written."""
        checkpoint.read("adapter", self.adapters.state())
        checkpoint.read("optimizer", self.optimizer.state(), self.optimizer.release)
        if self.rule.state():
            checkpoint.read("rule", self.rule.state())
        self.optimizer.steps = checkpoint.state["optimizer_steps"]
        self.scale = LossScale(**checkpoint.state["loss_scale"])
        self.progress = Progress(**checkpoint.state["progress"])
        if self.progress.micro_batch_tokens is not None:
            self.plan.steps.limit(self.progress.micro_batch_tokens)
        self.scorer.halve(checkpoint.state.get("evaluation_halvings", 0))
        self._open_logs()
        self.metrics.truncate(checkpoint.state["metrics_bytes"])
        self.samples.truncate(checkpoint.state["samples_bytes"])
        self.begun = True

    def patiently(self, save: Callable[[], T]) -> T:
        """What `save()` returns; a full disk pauses the run until there is room or a stop is asked for (P31)."""
        return save_with_patience(save, lambda error: self.listener.say(str(error)), lambda: self.stop.stop is not None)

    def save(self, best: bool) -> None:
        """One checkpoint of all that the next step depends on."""
        tensors: dict[str, dict[str, Tensor]] = {
            "adapter": {name: p.detach() for name, p in self.adapters.state().items()},
            "optimizer": self.optimizer.state(),
        }
        if self.rule.state():
            tensors["rule"] = self.rule.state()
        state = {
            "progress": asdict(self.progress),
            "optimizer_steps": self.optimizer.steps,
            "loss_scale": asdict(self.scale),
            "evaluation_halvings": self.scorer.halvings,
            "metrics_bytes": self.patiently(self.metrics.length),
            "samples_bytes": self.patiently(self.samples.length),
        }
        self.patiently(
            lambda: self.checkpoints.save(
                self.progress.step, tensors, state, best=best, after_chunk=self.optimizer.release
            )
        )
        for left in self.checkpoints.left_over:
            self.listener.say(left)

    def _record(self, row: dict[str, Any], advance: Advance) -> None:
        if not self.begun:
            self.early.append(row)
            return
        self.patiently(lambda: self.metrics.write(row))
        for tracker in self.trackers:
            tracker(row)
        advance(row["step"], row)

    def _validate(self, step: int) -> float | None:
        """Mean validation loss, and the answers to a few fixed prompts for samples.jsonl."""
        questions = self.scorer.questions[: self.recipe.evaluate.samples]
        answers, loss = self.scorer.ask(questions, Silent(), "samples"), self.scorer.loss()
        for q, a in zip(questions, answers, strict=True):  # only now: a stop in between leaves no half evaluation
            row = {"step": step, "prompt": q.prompt, "reference": q.reference, "answer": a}
            self.patiently(partial(self.samples.write, row))
        return loss

    def _explain(self, batch: Batch) -> str:
        places = [self.data.train[row].row.place for row in batch.rows[:4]]
        loss = make_loss(self.base, self.adapters, settings=self.recipe.train)
        return f"rows {', '.join(places)}; {first_nonfinite(self.base.model, lambda: loss(batch))}"


def prepare(
    folder: RunFolder,
    recipe: Recipe,
    base: Base,
    adapters: Adapters,
    data: Dataset,
    plan: RunPlan,
    scorer: Scorer,
    stop: StopSignals,
    listener: Listener,
) -> Session:
    """Everything the loop needs; of a run that goes on, as its newest checkpoint says. Nothing is written yet."""
    rule = step_rule(adapters, plan.steps.total)  # refuses before anything is written
    resumed = folder.receipt.exists() and folder.checkpoints.exists()
    now = receipt(recipe, base, data)
    if folder.receipt.exists():
        now["run_id"] = read_json(folder.receipt)["run_id"]
    if plan.engine.checkpointing:
        enable_checkpointing(base)
    session = Session(
        folder=folder,
        recipe=recipe,
        base=base,
        adapters=adapters,
        data=data,
        plan=plan,
        scorer=scorer,
        stop=stop,
        listener=listener,
        checkpoints=Checkpoints(
            folder.checkpoints, recipe.train.keep_checkpoints, now["run_id"], checkpoint_identity(recipe, now)
        ),
        optimizer=optimizer_for(adapters, recipe, folder.path),
        scale=LossScale.for_dtype(base.compute_dtype),
        trackers=trackers(recipe.train.report_to, folder.path, listener.say),
        receipt=now,
        rule=rule,
    )
    session.replay = make_replay(
        plan.engine, recipe.train, plan.micro_batch_tokens, base.device, session.optimizer, listener.say
    )
    if resumed:
        _resume(session, listener)
    return session


def enable_checkpointing(base: Base) -> None:
    """Blocks are recomputed in the backward. Raises TopcoatError for an architecture that cannot."""
    try:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})  # the other kind freezes layers (P07)
    except ValueError as error:
        raise TopcoatError(
            f"{base.identity.architecture} cannot recompute its blocks: {error}",
            where="train.recompute",
            fix="write none, and lower train.micro_batch_tokens if memory is short",
        ) from error


def _resume(session: Session, listener: Listener) -> None:
    """Go on from the newest checkpoint that verifies; say which were passed over and why.

    A run that died before its first checkpoint was there begins again. Raises Refused if there are some and all are
    damaged.
    """
    checkpoint = session.checkpoints.newest()
    for reason in session.checkpoints.skipped:
        listener.say(reason)
    if checkpoint is None and not session.checkpoints.skipped:
        listener.say("no checkpoint was saved yet; starting at step 0")
        return
    if checkpoint is None:
        raise Refused(
            f"no checkpoint in {session.folder.checkpoints} can be used",
            where=str(session.folder.checkpoints),
            fix="start again in another output folder",
        )
    session.restore(checkpoint)
    listener.say(f"resuming at step {checkpoint.step} of {session.plan.steps.total}")
