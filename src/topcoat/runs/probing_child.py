"""topcoat plan --measure, the side that measures: reads a recipe as JSON, begins its run, prints one JSON object.

Started by `probing.py` in a process of its own, so that the high-water mark of memory is the run's. A plan is corrected
by measured - predicted, so both are of the same thing: one micro-step of the largest batch, all that stays of loading
and rehearsing included, and nothing of the peaks before it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from topcoat.data.batches import Batch
from topcoat.errors import Refused, TopcoatError
from topcoat.planning.bill import Bill
from topcoat.planning.devices import device_in
from topcoat.planning.process import PROCESS_BYTES
from topcoat.planning.sizes import ROUNDING
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.run import run
from topcoat.runs.session import Session
from topcoat.training.loop import Training
from topcoat.training.memory import free_leftovers, peak_memory_bytes
from topcoat.training.rng import private_randomness, seed_micro_batch


class Measured(Exception):
    """Ends the run after its rehearsal, with what was measured."""

    def __init__(self, figures: dict[str, Any]) -> None:
        super().__init__("measured")
        self.figures = figures


def measure(session: Session) -> None:
    """The largest micro batch once more, timed. Nothing is written. Raises Measured."""
    if session.progress.micro_batch_tokens is not None:
        raise Refused(
            "the largest micro batch does not fit into memory: it was halved before it could be measured",
            where="train.micro_batch_tokens",
            fix=f"write {session.progress.micro_batch_tokens}, which did fit",
        )
    batch = session.plan.steps.worst()
    lengths = session.data.train.lengths  # of tokens, all rows
    device = session.base.device
    forget_peak(device)
    seconds = micro_step(session.loop(lambda done, figures: None), batch, device)
    raise Measured(
        {
            "measured_bytes": peak_since(device),
            "predicted_bytes": planned_bytes(session.plan.bill, device),
            "micro_step_seconds": seconds,
            "micro_step_tokens": batch.input_ids.numel(),
            "rows": len(session.data.train),
            "mean_tokens": float(lengths.mean()),
            "longest_tokens": int(lengths.max()),
            "labelled": session.data.report.target_tokens / max(1, int(lengths.sum())),
            "steps": session.plan.steps.total,
            "device": str(device),
        }
    )


def micro_step(training: Training, batch: Batch, device: torch.device) -> float:
    """Seconds of one forward and backward; its gradients are thrown away."""
    with private_randomness():
        seed_micro_batch(training.seed, 0, 0)
        _finish(device)
        began = time.perf_counter()
        loss = training.loss(batch)
        (loss * (training.scale.value / max(1, batch.n_target_tokens))).backward()
        _finish(device)
        seconds = time.perf_counter() - began
    training.optimizer.zero_grad()
    return seconds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def planned_bytes(bill: Bill, device: torch.device) -> int:
    """The peak of the run's `bill` as a plan would have it, which knows of the process and the GPU's libraries only
    what its tables say: a run has measured its process, and leaves the libraries of a GPU out."""
    if device.type == "cuda":
        known = device_in(torch.cuda.get_device_name(device))
        return bill.peak_bytes + round((1 + ROUNDING) * (known.workspace_bytes if known else 0))
    runtime = sum(line.bytes for line in bill.lines if line.name == "runtime")
    return bill.peak_bytes - runtime + PROCESS_BYTES


def forget_peak(device: torch.device) -> None:
    """Let the high-water mark begin anew: what loading or an evaluation took is in no bill of a training step."""
    free_leftovers()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # a kernel without it: the mark is that of the whole process then
        Path("/proc/self/clear_refs").write_text("5")


def peak_since(device: torch.device) -> int:
    """Bytes at the high-water mark since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_memory_bytes(device)


def main() -> None:
    """One recipe in, one object out; errors of the run are part of the answer."""
    recipe = recipe_from_dict(json.load(sys.stdin))
    with tempfile.TemporaryDirectory(prefix="topcoat-probe-") as folder:
        try:
            run(recipe.model_copy(update={"output": str(Path(folder) / "run")}), rehearsed=measure)
        except Measured as done:
            print(json.dumps(done.figures))
        except TopcoatError as error:
            problems = [{"what": p.what, "where": p.where, "fix": p.fix} for p in error.problems]
            print(json.dumps({"problems": problems, "refused": isinstance(error, Refused)}))


if __name__ == "__main__":
    main()
