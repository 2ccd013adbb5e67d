"""TensorBoard and Weights & Biases, by `report_to`, only if installed. A tracker that fails never ends a run (P39)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from topcoat.errors import Problem, TopcoatError

Tracker = Callable[[dict[str, Any]], None]


def trackers(names: Iterable[str], folder: Path, warn: Callable[[str], None]) -> list[Tracker]:
    """One function a tracker, each taking a row of metrics. Raises TopcoatError naming those not installed."""
    names = list(names)
    require_installed(names)
    return [_guarded(name, folder, warn) for name in names]


def require_installed(names: Iterable[str]) -> None:
    """Raises TopcoatError naming every tracker that is not installed."""
    problems = [
        Problem(
            f"report_to names {name}, which is not installed",
            "train.report_to",
            f"pip install {name}, or leave it out: metrics.jsonl and report.html need no tracker",
        )
        for name in names
        if find_spec(name) is None
    ]
    if problems:
        raise TopcoatError.gather(problems)


def _guarded(name: str, folder: Path, warn: Callable[[str], None]) -> Tracker:
    """The tracker, opened at its first row; once it fails it is left out."""
    tracker: Tracker | None = None
    broken = False

    def record(row: dict[str, Any]) -> None:
        nonlocal broken, tracker
        if broken:
            return
        try:
            tracker = tracker or MAKERS[name](folder)
            tracker(row)
        except Exception as error:  # whatever a third-party tracker raises, the run goes on
            broken = True
            warn(f"{name} failed and is left out from here on: {error}; metrics.jsonl has every figure")

    return record


def _tensorboard(folder: Path) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def record(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                writer.add_scalar(key, value, row["step"])
        writer.flush()  # its own buffer holds two minutes, and nobody closes it

    return record


def _wandb(folder: Path) -> Tracker:
    import wandb

    run = wandb.init(project="topcoat", name=folder.name, dir=str(folder))

    def record(row: dict[str, Any]) -> None:
        run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    return record


MAKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Name in report_to -> run folder -> tracker."""
