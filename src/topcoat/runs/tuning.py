"""A search told as a story: load once, hold rows out, look where rates work, try values until the time is up.

Rows that the recipe holds out are not looked at: what is searched for is measured on a split of the training rows, so
the scores of the run that follows are of rows that nothing was chosen by.

The time is split once, when the study begins: a trial that comes to its end may take a fourteenth of it. Every trial
sees the same rows, so their losses compare; a later call takes the slice as it was written down.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from topcoat.data.load import load_data
from topcoat.errors import Interrupted, Refused, TopcoatError
from topcoat.files import write_file
from topcoat.recipe.load import dump_recipe
from topcoat.recipe.schema import Recipe
from topcoat.report.tuning_page import tuning_page
from topcoat.run_lock import RunLock
from topcoat.runs.folder import RunFolder, write_json
from topcoat.runs.listener import Listener, Silent
from topcoat.runs.room import room_for_text
from topcoat.runs.rounding import load_base_for_training
from topcoat.runs.tuning_data import Slice, cut, search_rows, slice_for
from topcoat.runs.tuning_range import RangeTest, range_test
from topcoat.runs.tuning_space import (
    Range,
    Space,
    at_edge,
    fitting,
    own_values,
    parse_space,
    show_values,
    suggest,
    winner_text,
    with_values,
)
from topcoat.runs.tuning_state import JOURNAL, PAGE, STATE, WINNER, open_study, parse_seconds
from topcoat.runs.tuning_study import VALUES, Study, Tried, winner
from topcoat.runs.tuning_trial import Bench, run_trial
from topcoat.training.memory import memory_bytes
from topcoat.training.schedule import default_learning_rate
from topcoat.training.signals import StopSignals
from topcoat.units import show_seconds

PAGE_SECONDS, PAGE_SHARE = 3.0, 0.05
"""Of the time, kept for the page: the lesser of the two."""
IN_VAIN = 3
"""Trials refused one after the other that end a search."""
OBJECTIVES = ("sft", "completion")
TEST_SHARE = 0.15
"""Of the time, for the range test."""


@dataclass(frozen=True)
class Tuned:
    """What a search left."""

    folder: Path
    recipe: Path
    """The recipe that won, ready for `topcoat train`."""
    best: Tried
    tried: list[Tried]
    seconds: float


def tune(
    recipe: Recipe,
    over: str,
    budget: str,
    *,
    output: Path | None = None,
    trials: int | None = None,
    listener: Listener | None = None,
    began: float | None = None,
) -> Tuned:
    """Search over settings of `recipe` for as long as `budget` says, all calls of one study together.

    Writes winner.yaml, tune.html, tune.json and the study into `output` (the recipe's own with -tune behind it); the
    same call continues an interrupted study, and a larger budget one that ended. `trials` ends it earlier,
    `began` (time.monotonic()) says that the time runs since then. Raises
    TopcoatError for wrong input, Refused where no trial could be measured, Interrupted after a signal (all is saved).
    """
    began = time.monotonic() if began is None else began
    listener = listener or Silent()
    space, seconds = parse_space(over, recipe), parse_seconds(budget)
    if recipe.train.objective not in OBJECTIVES:
        what = f"train.objective is {recipe.train.objective}; a search compares losses of {' or '.join(OBJECTIVES)}"
        raise TopcoatError(what, "train.objective", "try its settings by hand, one run each")
    folder = output or Path(f"{recipe.output.rstrip('/')}-tune")
    state = open_study(folder, recipe, space)
    with _signals() as stop, RunLock(folder):
        search = _Search(recipe, space, folder, state, listener, stop, began, seconds, trials)
        search.run()
        return search.result()


class _Search:
    """One call: the study, its clock and what it has written down."""

    def __init__(
        self,
        recipe: Recipe,
        space: Space,
        folder: Path,
        state: dict[str, Any],
        listener: Listener,
        stop: StopSignals,
        began: float,
        seconds: float,
        trials: int | None,
    ) -> None:
        self.recipe, self.space, self.folder, self.state = recipe, space, folder, state
        self.listener, self.stop, self.seconds, self.trials = listener, stop, seconds, trials
        self.began = began - state["seconds"]
        self.enough = seconds - min(PAGE_SECONDS, PAGE_SHARE * seconds)
        self.study = Study(folder / JOURNAL, recipe.seed)
        self.searched = space
        self.in_vain = 0  # trials refused since the last that was measured

    def used(self) -> float:
        """Seconds of this call and those before it."""
        return time.monotonic() - self.began

    def over(self) -> bool:
        """The time or the number of trials is spent."""
        done = len(self.study.tried())
        return self.used() >= self.enough or (self.trials is not None and done >= self.trials)

    def run(self) -> None:
        """Try until the time is up. Raises Interrupted after a signal, with everything saved."""
        if self.over() and self.study.tried():
            self.listener.say(f"the study has used {show_seconds(self.state['seconds'])}: a larger --budget goes on")
            return
        bench = self._bench()
        sliced, test = self._plan(bench)
        bench.data = cut(bench.data, sliced)
        space = self._narrowed(test)
        space = self.searched = fitting(space, self.recipe, self.listener.say)
        self.study.begin_with(own_values(space, self.recipe, self._own_rate(bench)))
        self.listener.say(
            f"each trial trains on {sliced.rows:,} rows, {sliced.examples / sliced.rows:.2g} passes at most, and is "
            f"measured on {sliced.held:,} others; {show_seconds(max(0.0, self.seconds - self.used()))} left"
        )
        again = True
        while again:  # once at least, to its first measurement
            self._try(bench, space, sliced)
            self._save()
            if self.stop.stop is not None:
                error = Interrupted(
                    f"{self.stop.stop.name}: {len(self.study.tried())} trials are saved",
                    str(self.folder),
                    "the same command continues",
                )
                error.exit_code = self.stop.stop.exit_code
                raise error
            again = not self.over()

    def result(self) -> Tuned:
        """The winner, written out. Raises Refused where no trial was measured."""
        tried = self.study.tried()
        best = winner(tried)
        self._save()
        if best is None:
            raise Refused(
                "no trial came to its first measurement",
                str(self.folder),
                "give a larger --budget; the same command continues",
            )
        said = f"The best of {len(tried)} trials of topcoat tune: {show_values(best.values)}, loss {best.loss:.4f}"
        write_file(self.folder / WINNER, winner_text(self.recipe, best.values, said))
        write_file(self.folder / PAGE, tuning_page(self._facts(best, tried)))
        for name in at_edge(self.searched, best.values):
            self.listener.say(f"note: the best {name} is at the edge of its range; a wider one may hold a better")
        return Tuned(self.folder, self.folder / WINNER, best, tried, self.used())

    def _bench(self) -> Bench:
        """The base and all rows that may be searched on."""
        runtime = memory_bytes(torch.device("cpu"))
        load = _loader(self.recipe, self.folder, self.listener, self.stop)
        base = load()
        if not (self.folder / "recipe.yaml").exists():
            write_file(self.folder / "recipe.yaml", dump_recipe(self.recipe))
        self.stop.check()
        data = load_data(
            self.recipe.data,
            base.tokenizer,
            context_length=room_for_text(base.context_length, self.recipe),
            seed=self.recipe.seed,
            objective=self.recipe.train.objective,
            vocab_rows=base.vocab_rows,
            bar=self.listener.progress,
            check=self.stop.check,
        )
        own = search_rows(data, self.recipe.seed)
        return Bench(load, own, self.folder, self.stop, self.listener, runtime, base)

    def _plan(self, bench: Bench) -> tuple[Slice, RangeTest]:
        """The slice and the range test: those written down, or now, at the beginning of the study."""
        if "slice" in self.state:
            test = self.state["range_test"]
            points = tuple((rate, loss) for rate, loss in test["points"])
            return Slice(**self.state["slice"]), RangeTest(points, test["low"], test["high"], test["step_seconds"])
        own = self.space.get("learning_rate")
        within = own if isinstance(own, Range) else Range(1e-5, 1e-2, log=True)
        test = range_test(bench, with_values(self.recipe, {}, max_steps=None), within, TEST_SHARE * self.seconds)
        self.stop.check()
        left = max(1.0, self.seconds - self.used())
        sliced = slice_for(bench.data, self.recipe, self.space, test.step_seconds, left)
        self.state |= {"slice": asdict(sliced), "range_test": asdict(test)}
        self._save()
        return sliced, test

    def _narrowed(self, test: RangeTest) -> Space:
        """The space with the range of rates that the test found to work, unless the user wrote one."""
        span = self.space.get("learning_rate")
        if not isinstance(span, Range) or not self.state["usual_rates"]:
            return self.space
        if (test.low, test.high) != (span.low, span.high):
            self.listener.say(f"the range test narrows learning_rate to {test.low:g}..{test.high:g}")
        return {**self.space, "learning_rate": Range(test.low, test.high, log=True)}

    def _own_rate(self, bench: Bench) -> float:
        rate = self.recipe.train.learning_rate
        if not isinstance(rate, str):
            return rate
        parameters = sum(p.numel() for p in bench.base.model.parameters())
        return default_learning_rate(self.recipe.adapter, parameters)

    def _try(self, bench: Bench, space: Space, sliced: Slice) -> None:
        """One trial, and what became of it."""
        trial = self.study.ask()
        values = suggest(space, trial)
        trial.set_user_attr(VALUES, values)
        passes = sliced.examples / sliced.rows
        if "epochs" in values:
            passes = min(float(values["epochs"]), passes)
        began = time.monotonic()
        losses: dict[int, float] = {}

        def at_rung(ninths: int, loss: float) -> str:
            if not math.isfinite(loss):
                return "the loss is no number"
            losses[ninths] = loss
            trial.report(loss, ninths)
            self._keep_time()
            if ninths == 9:
                return ""
            if trial.should_prune():
                return "pruned"
            return "the time is up" if self.used() >= self.enough else ""

        refused: TopcoatError | None = None
        try:
            made = with_values(self.recipe, values, epochs=passes, max_steps=None)
            said = run_trial(bench, made, f"trial {trial.number}", at_rung)
        except TopcoatError as error:
            if isinstance(error, Interrupted):
                raise
            refused, said = error, str(error).split("\n")[0]
        if said == "stopped" and 9 not in losses:
            self.study.interrupted(trial)
            return
        if 9 in losses:
            self.study.finished(trial, losses[9])
        else:
            self.study.pruned(trial)
        self.in_vain = 0 if losses else self.in_vain + 1
        if refused is not None and self.in_vain >= IN_VAIN:  # the values themselves are wrong: no budget mends that
            raise refused
        shown = f"loss {losses[max(losses)]:.4f} at {max(losses)}/9" if losses else "not measured"
        seconds = show_seconds(time.monotonic() - began)
        self.listener.say(
            f"trial {trial.number}: {show_values(values)}: {shown}{', ' + said if said else ''}, {seconds}"
        )

    def _keep_time(self) -> None:
        self.state["seconds"] = self.used()

    def _save(self) -> None:
        """The state, so that a later call knows the slice, the time and the trials."""
        self._keep_time()
        tried = self.study.tried()
        best = winner(tried)
        write_json(
            self.folder / STATE,
            {
                **self.state,
                "budget_seconds": self.seconds,
                "best": best.as_json() if best else None,
                "trials": [one.as_json() for one in tried],
            },
        )

    def _facts(self, best: Tried, tried: list[Tried]) -> dict[str, Any]:
        """What the page shows."""
        return {
            "name": self.folder.resolve().name,
            "winner": str(self.folder / WINNER),
            "recipe_output": self.recipe.output,
            "space": {name: str(span) for name, span in self.space.items()},
            "log": [name for name, span in self.space.items() if isinstance(span, Range) and span.log],
            "range_test": self.state.get("range_test"),
            "slice": self.state.get("slice"),
            "seconds": self.used(),
            "best": best.as_json(),
            "trials": [one.as_json() for one in tried],
        }


def _loader(recipe: Recipe, folder: Path, listener: Listener, stop: StopSignals) -> Callable[[], Any]:
    return lambda: load_base_for_training(recipe, RunFolder(folder), listener, stop.check)


def _signals() -> AbstractContextManager[StopSignals]:
    """As a run's: caught in the main thread, elsewhere nothing asks to stop."""
    signals = StopSignals()
    return signals if threading.current_thread() is threading.main_thread() else nullcontext(signals)
