"""Whole runs in this process: started, stopped at a drawn step, resumed, and compared bit for bit."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from topcoat.files import sha256_file
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.run import Result, run
from topcoat.training.metrics import read_metrics


class Ear:
    """A listener that keeps what it hears, and raises a signal when a figure of the training says so."""

    def __init__(self, asks: Callable[[dict[str, Any]], bool] = lambda figures: False, number: int = signal.SIGTERM):
        self.asks, self.number = asks, number
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)
        self.ask({"label": "say", "text": text, "done": None})

    def show(self, renderable: Any) -> None:
        self.heard.append(str(renderable))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        def advance(done: int, figures: dict[str, Any]) -> None:
            self.ask({"label": label, "done": done, **figures})

        yield advance

    def ask(self, figures: dict[str, Any]) -> None:
        if self.asks(figures):
            self.asks = lambda figures: False  # a second signal would end the process
            signal.raise_signal(self.number)

    @property
    def text(self) -> str:
        return "\n".join(self.heard)


def after_step(step: int) -> Callable[[dict[str, Any]], bool]:
    """When the optimizer step `step` is done, before the evaluation that may follow it."""
    return lambda figures: figures["label"] == "training" and figures["done"] == step and "loss" in figures


def after_evaluation(step: int) -> Callable[[dict[str, Any]], bool]:
    """When the evaluation after `step` is done and not yet saved."""
    return lambda figures: figures["label"] == "training" and figures["done"] == step and "validation_loss" in figures


@pytest.fixture
def ear() -> type[Ear]:
    return Ear


@pytest.fixture
def stop_after() -> dict[str, Callable[[int], Callable[[dict[str, Any]], bool]]]:
    return {"step": after_step, "evaluation": after_evaluation}


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """train(recipe dict, resume=False, listener=None), without drawing the report: most of a tiny run's time."""
    monkeypatch.setattr("topcoat.runs.finish.write_report", lambda folder: None)

    def call(recipe: dict[str, Any], *, resume: bool = False, listener: Ear | None = None) -> Result:
        return run(recipe_from_dict(recipe), resume=resume, listener=listener)

    return call


def trace_of(folder: str | Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on where and how often it was stopped."""
    folder = Path(folder)
    timed = {"tokens_per_s", "memory_bytes", "elapsed_s"}
    rows = [
        {k: v.hex() if isinstance(v, float) else v for k, v in row.items() if k not in timed}
        for row in read_metrics(folder / "metrics.jsonl")
    ]
    last = max((folder / "checkpoints").glob("step-????????"))
    results = json.loads((folder / "results.json").read_text())
    results.pop("train_seconds")
    weights = [*folder.glob("adapter/adapter_model.safetensors"), *folder.glob("model/*.safetensors")]
    return {
        "metrics": rows,
        "samples": (folder / "samples.jsonl").read_text(),
        "weights": {file.name: sha256_file(file) for file in weights},
        "checkpoint": {file.name: sha256_file(file) for file in [last, *last.glob("*.safetensors")] if file.is_file()},
        "last": last.name,
        "results": results,
    }


@pytest.fixture
def trace() -> Callable[[str | Path], dict[str, Any]]:
    return trace_of
