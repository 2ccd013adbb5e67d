"""The study of a search: optuna's sampler and pruner over a journal in the output folder, which a later call continues.

The sampler is TPE (Bergstra et al. 2011), the pruner asynchronous successive halving (Li et al. 2018, arXiv:1810.05934)
with a third promoted at each rung. The journal is lines of JSON: every value of every trial is in it as soon as it is
known, so a process that is killed loses the trial it was at, and that one is tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.runs.tuning_space import Value

NAME = "topcoat tune"
KEPT_SHARE = 3
"""One of this many goes on from each rung."""
VALUES, SECONDS = "values", "seconds"
"""What a trial keeps besides: its values as the recipe has them, and how long it took."""


@dataclass(frozen=True)
class Tried:
    """A trial that was measured at least once."""

    number: int
    values: Mapping[str, Value]
    losses: Mapping[int, float]
    """Ninths of the trial -> loss on the rows held out for the search."""
    finished: bool

    @property
    def reached(self) -> int:
        """The last rung."""
        return max(self.losses)

    @property
    def loss(self) -> float:
        """There."""
        return self.losses[self.reached]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        losses = {str(rung): loss for rung, loss in sorted(self.losses.items())}
        return {"trial": self.number, "values": dict(self.values), "losses": losses, "finished": self.finished}


class Study:
    """Asks for the next values and is told how they did."""

    def __init__(self, journal: Path, seed: int) -> None:
        """Open the study in `journal`, or begin it. Raises TopcoatError where optuna is not installed."""
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise TopcoatError("topcoat tune needs optuna", "", "pip install 'topcoat[tune]'") from error
        self._state = optuna.trial.TrialState
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="minimize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEPT_SHARE),
        )
        begun = len(self.study.get_trials(deepcopy=False))
        startup = 5
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + begun, n_startup_trials=startup, multivariate=False)
        self._again()

    def _again(self) -> None:
        """Trials that a killed process left running are given up, and their values tried again."""
        for trial in self.study.get_trials(deepcopy=False, states=(self._state.RUNNING,)):
            self.study.tell(trial.number, state=self._state.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params)

    def begin_with(self, values: Mapping[str, Value]) -> None:
        """These values come first, in a study that has no trial yet."""
        if values and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(dict(values))

    def ask(self) -> Any:
        """The next trial."""
        return self.study.ask()

    def finished(self, trial: Any, loss: float) -> None:
        """The trial came to its end."""
        self.study.tell(trial, loss)

    def pruned(self, trial: Any) -> None:
        """The trial was given up at a rung, or could not be trained."""
        self.study.tell(trial, state=self._state.PRUNED)

    def interrupted(self, trial: Any) -> None:
        """The trial was stopped between rungs: its values are tried again."""
        self.study.tell(trial, state=self._state.FAIL)
        self.study.enqueue_trial(dict(trial.params))

    def tried(self) -> list[Tried]:
        """Every trial that was measured, in order. Those that were interrupted come again under another number."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.intermediate_values and trial.state in (self._state.COMPLETE, self._state.PRUNED):
                values = trial.user_attrs.get(VALUES, trial.params)
                done = trial.state == self._state.COMPLETE
                found.append(Tried(trial.number, values, dict(trial.intermediate_values), done))
        return found


def quiet() -> None:
    """Let optuna say only what is wrong: for a command, since it holds for the whole process."""
    try:
        import optuna
    except ImportError:  # `Study` says what to install
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def winner(tried: list[Tried]) -> Tried | None:
    """The lowest loss among the trials that came furthest; None where none was measured."""
    furthest = max((trial.reached for trial in tried), default=None)
    return min((trial for trial in tried if trial.reached == furthest), key=lambda trial: trial.loss, default=None)
