"""One run told as a story: load, attach, data, bill, score the base, train, save, score the adapter, report.

This is the whole program on one screen; every line is a part that can be read alone. From here the way to the optimizer
step is `training/loop.py`, by way of `runs/session.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from topcoat.data.load import Dataset, load_data
from topcoat.data.preview import preview
from topcoat.errors import Interrupted
from topcoat.model.load import Base
from topcoat.model.parity import require_attention_parity, require_separate_documents
from topcoat.recipe.schema import Recipe
from topcoat.runs.attaching import attach_to
from topcoat.runs.checking import check_before_training
from topcoat.runs.finish import finish, keep_best
from topcoat.runs.folder import RunFolder
from topcoat.runs.guiding import facts_of_run, tell
from topcoat.runs.listener import Listener, Silent
from topcoat.runs.opening import claimed, free_memory, plan_run, refuse_impossible
from topcoat.runs.rehearsal import rehearse
from topcoat.runs.room import room_for_text
from topcoat.runs.rounding import load_base_for_training
from topcoat.runs.scorers import SCORERS
from topcoat.runs.scoring import Scores
from topcoat.runs.session import Session, prepare
from topcoat.training.loop import train
from topcoat.training.memory import memory_bytes
from topcoat.training.signals import StopSignals
from topcoat.training.trackers import require_installed


@dataclass(frozen=True)
class Result:
    """What a finished run left."""

    folder: Path
    adapter: Path
    """The PEFT directory, or the whole model after full fine-tuning."""
    base: Scores
    tuned: Scores
    train_seconds: float
    steps: int
    mergeable: bool = True
    """Whether `topcoat merge` can make one model of it."""


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    rehearsed: Callable[[Session], None] = lambda session: None,
) -> Result:
    """Train one adapter from one recipe and leave all that is known about it in `recipe.output`.

    `rehearsed` is called once the worst of the run has been computed, and may raise to end it. `resume` goes on from
    the newest checkpoint that verifies. Raises TopcoatError for wrong input, Refused where the run would be dishonest,
    Interrupted (after saving) when SIGINT or SIGTERM asked it to stop.
    """
    listener = listener or Silent()
    folder = RunFolder(Path(recipe.output))
    require_installed(recipe.train.report_to)
    with _signals() as stop, claimed(folder, recipe, resume):
        session = open_session(folder, recipe, stop, listener, resume=resume)
        rehearse(session)  # the worst first: memory fails in the first minute or never
        rehearsed(session)
        session.begin()  # from here on the folder holds a run
        scored = session.base_scores(listener)  # before anything is trained; kept for a resume
        began = time.perf_counter()
        with listener.progress("training", session.plan.steps.total) as advance:
            progress = train(session.loop(advance))
        if session.replay is not None:
            listener.say(session.replay.describe())
        if stop.stop is not None:
            raise interrupted(stop, f"saved step {progress.step}", folder)
        keep_best(session, progress, listener)
        seconds = progress.elapsed_s or time.perf_counter() - began
        tuned = finish(session, scored, progress, listener)
        trained, mergeable = folder.trained(recipe.adapter), not recipe.adapter.virtual_tokens
        return Result(folder.path, trained, scored, tuned, seconds, progress.step, mergeable)


def open_session(
    folder: RunFolder, recipe: Recipe, stop: StopSignals, listener: Listener, *, resume: bool = False
) -> Session:
    """Load, attach, count and bind together; of a run that goes on, as its newest checkpoint says.

    Raises TopcoatError for wrong input, Refused for what would be dishonest or would not fit, Interrupted once a stop
    was asked for.
    """
    refuse_impossible(recipe)  # what the model's shapes rule out costs no load
    before = memory_bytes(torch.device("cpu"))  # the process before any model is loaded
    base = load_base_for_training(recipe, folder, listener, stop.check)  # frozen, quantized while it streams in
    stop.check()
    data = open_data(recipe, base, listener, stop)
    stop.check()
    check_attention(base, data, recipe.data.packing)  # one real example, before hours are spent
    adapters = attach_to(base, data, recipe)  # from here on, the only parameters that train
    plan = plan_run(recipe, base, adapters, data, before)
    plan.bill.require_fit(free_memory(base.device))  # refuses now, with advice, what would fail at step 1
    listener.show(plan.table(recipe, base, adapters, data))
    listener.show(data.report)
    tell(recipe, facts_of_run(base, adapters, data, plan.steps.total), listener)
    if not resume:
        check_before_training(recipe, data, adapters, listener)  # stops where the policy of a check says so
    listener.show(preview(data.train[0], base.tokenizer))
    scorer = SCORERS[recipe.train.objective](
        base,
        adapters,
        data,
        recipe.evaluate,
        recipe.train,
        budget_tokens=plan.micro_batch_tokens,
        packing=recipe.data.packing,
        check=lambda: leave_if_asked(stop, folder),
        fused=plan.engine.fused,
        say=listener.say,
    )
    return prepare(folder, recipe, base, adapters, data, plan, scorer, stop, listener)


def open_data(recipe: Recipe, base: Base, listener: Listener, stop: StopSignals) -> Dataset:
    """The recipe's rows in the base's tokens."""
    return load_data(
        recipe.data,
        base.tokenizer,
        context_length=room_for_text(base.context_length, recipe),
        seed=recipe.seed,
        objective=recipe.train.objective,
        vocab_rows=base.vocab_rows,
        bar=listener.progress,
        check=stop.check,
    )


def check_attention(base: Base, data: Dataset, packing: bool) -> None:
    """Raises Refused where attention is not the architecture's own, or packed examples would see each other."""
    require_attention_parity(base.model, data.train[0].input_ids, base.compute_dtype)
    if packing and len(data.train) > 1:
        require_separate_documents(base.model, data.train[0].input_ids, data.train[1].input_ids, base.compute_dtype)


def leave_if_asked(stop: StopSignals, folder: RunFolder) -> None:
    """Leave an evaluation once a stop was asked for. Raises Interrupted; the last checkpoint stands."""
    if stop.stop is not None:
        raise interrupted(stop, "stopped while evaluating; no step is lost", folder)


def interrupted(stop: StopSignals, what: str, folder: RunFolder) -> Interrupted:
    """The message after a stop that was asked for: what is saved and how to go on."""
    assert stop.stop is not None
    error = Interrupted(f"{stop.stop.name}: {what}", str(folder.path), "the same command with --resume continues")
    error.exit_code = stop.stop.exit_code
    return error


def _signals() -> AbstractContextManager[StopSignals]:
    """Catches signals in the main thread; elsewhere no handler can be installed, and nothing asks the run to stop."""
    signals = StopSignals()
    return signals if threading.current_thread() is threading.main_thread() else nullcontext(signals)
