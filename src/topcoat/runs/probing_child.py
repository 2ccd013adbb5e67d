"""topcoat plan --measure, the side that measures: reads a recipe as JSON, begins its run, prints one JSON object.

Started by `probing.py` in a process of its own, so that the high-water mark of memory is the run's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from topcoat.errors import Refused, TopcoatError
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.run import run
from topcoat.runs.session import Session
from topcoat.training.loop import probe
from topcoat.training.memory import peak_memory_bytes
from topcoat.training.rng import private_randomness


class Measured(Exception):
    """Ends the run after its rehearsal, with what was measured."""

    def __init__(self, figures: dict[str, Any]) -> None:
        super().__init__("measured")
        self.figures = figures


def measure(session: Session) -> None:
    """The largest micro batch once more, timed. Raises Measured."""
    if session.progress.micro_batch_tokens is not None:
        raise Refused(
            "the largest micro batch does not fit into memory: it was halved before it could be measured",
            where="train.micro_batch_tokens",
            fix=f"write {session.progress.micro_batch_tokens}, which did fit",
        )
    batch = session.plan.steps.worst()
    with private_randomness():
        training = session.loop(lambda done, figures: None)
        began = time.perf_counter()
        probe(training)
        seconds = time.perf_counter() - began
    lengths = session.data.train.lengths  # of tokens, all rows
    device = session.base.device
    on_gpu = device.type == "cuda"
    raise Measured(
        {
            "measured_bytes": torch.cuda.max_memory_reserved(device) if on_gpu else peak_memory_bytes(device),
            "predicted_bytes": session.plan.bill.peak_bytes,
            "micro_step_seconds": seconds,
            "micro_step_tokens": batch.input_ids.numel(),
            "rows": len(session.data.train),
            "mean_tokens": float(lengths.mean()),
            "longest_tokens": int(lengths.max()),
            "labelled": batch.n_target_tokens / max(1, batch.n_tokens),
            "steps": session.plan.steps.total,
            "device": str(device),
        }
    )


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
