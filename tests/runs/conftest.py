"""Whole runs in this process: started, stopped at a drawn step, resumed, and compared bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
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


NURSERY = """
import json, os, sys
import matplotlib.pyplot, topcoat.cli.live, topcoat.cli.show, topcoat.cli.train, topcoat.runs.run
from topcoat.cli.main import run
from topcoat.report import curves, page
from transformers import LlamaForCausalLM, AutoTokenizer
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        exec(order["before"])
        try:
            code = run(order["arguments"])
        finally:
            sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
"""


class Nursery:
    """Processes that have imported everything already: a `topcoat` process starts in milliseconds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.living: set[int] = set()
        assert self._answer() == "ready"

    def start(self, *arguments: str, log: Path, before: str = "") -> int:
        """Start `topcoat arguments` with its output in `log`, after running `before` in it; its pid."""
        pid = int(self._ask({"arguments": arguments, "log": str(log), "before": before}))
        self.living.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Its exit code, or minus the signal that ended it."""
        self.living.discard(pid)
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        for pid in self.living:
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def _ask(self, order: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until
