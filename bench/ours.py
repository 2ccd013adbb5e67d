"""Topcoat as a contender: the product's own loading, adapter, engine, batches, loss, optimizer and loop.

Only the data and the pauses are the benchmark's: documents come from its file, and between two steps the loop waits.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.worker import Session, versions
from topcoat.adapters.attach import Adapters
from topcoat.adapters.files import load_adapter
from topcoat.data.batches import Batch, micro_batches
from topcoat.data.render import Example
from topcoat.data.rows import Row
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.planning.loaded import loaded_counts
from topcoat.planning.sizes import Setup, bill_of
from topcoat.quant.settings import Nf4Config
from topcoat.runs.compute import make_loss
from topcoat.runs.engine import Engine, choose_engine
from topcoat.runs.graphs import make_replay
from topcoat.runs.opening import free_memory
from topcoat.training.loop import Training, train
from topcoat.training.loss_scale import LossScale
from topcoat.training.memory import memory_bytes
from topcoat.training.optimizers.choices import make_optimizer
from topcoat.training.optimizers.trained import Trained
from topcoat.training.replay import PROOFS, Replay
from topcoat.training.settings import TrainSettings

ENDLESS = 1 << 30


class Documents:
    """The session's documents as the loop's steps."""

    total = ENDLESS

    def __init__(self, session: Session) -> None:
        self.session, self.budget = session, session.spec["tokens"]
        self.last: list[Batch] = []
        """The micro batches of the newest step."""

    def micro_batches(self, step: int) -> list[Batch]:
        """Packed, as a run packs them."""
        documents = self.session.documents(step)
        examples = [Example(d["input_ids"], d["labels"], Row({}, "bench", at + 1)) for at, d in enumerate(documents)]
        self.last = micro_batches(examples, range(len(examples)), budget_tokens=self.budget, packing=True)
        return self.last

    def worst(self) -> Batch:
        """The largest micro batch of all steps."""
        batches = [batch for step in range(len(self.session.steps)) for batch in self.micro_batches(step)]
        return max(batches, key=lambda batch: batch.input_ids.numel())

    def limit(self, tokens: int) -> None:
        """Memory ran out. Raises SystemExit: what would be measured then is another workload."""
        raise SystemExit(f"the memory of this machine is too small: micro batches of {tokens:,} tokens would be needed")

    def saw(self) -> tuple[list[int], list[int]]:
        """Real tokens and their labels in the newest step; what fills a packed row up stands at its end."""
        ids = [token for b in self.last for token in b.input_ids.flatten()[: b.n_tokens].tolist()]
        return ids, [label for b in self.last for label in b.labels.flatten()[: b.n_tokens].tolist()]


class Until:
    """The loop's stop flag."""

    stop: object | None = None


def engine_for(session: Session, base: Base, adapters: Adapters, steps: Documents, before: int) -> Engine:
    """As a run chooses it: what is free, less everything but the activations, is the budget of `auto`."""
    worst = steps.worst()
    tokens = worst.input_ids.numel()
    element = base.compute_dtype.itemsize
    setup = Setup(tokens=tokens, rows=tokens, element_bytes=element, runtime_bytes=before, idle=True)
    fixed = bill_of(loaded_counts(base.model, adapters.parameters()), setup)
    free = session.spec["free_bytes"] or free_memory(base.device)
    room = None if free is None else free - fixed.peak_bytes
    ids = session.documents(0)[0]["input_ids"]
    return choose_engine(base, adapters, session.spec["settings"]["recompute"], ids, tokens, room)


def warm_up(replay: Replay, steps: Documents, trained: Trained) -> int:
    """What a run does in its first steps, for every shape that will be measured; micro batches that were launched."""
    before = {name: parameter.detach().clone() for name, parameter in trained.parameters.items()}
    with torch.no_grad():
        for _ in range(1 + PROOFS):
            for step in range(len(steps.session.steps)):
                for batch in steps.micro_batches(step):
                    with torch.enable_grad():
                        replay(batch, 1.0)
            for parameter in trained.parameters.values():
                parameter.mul_(1.01)  # a proof wants parameters that have changed
        for name, parameter in trained.parameters.items():
            parameter.copy_(before[name])
    trained.zero()
    return replay.launched


def main() -> None:
    session = Session()
    spec, settings = session.spec, session.spec["settings"]
    before = memory_bytes(torch.device("cpu"))
    base = load_model(
        ModelSettings(
            path=spec["model"],
            compute_dtype=settings["dtype"],
            device=spec["device"],
            quantization=Nf4Config() if spec["stored"] == "nf4" else None,
        )
    )
    adapters = load_adapter(base.model, Path(spec["adapter"]))
    steps, stop = Documents(session), Until()
    engine = engine_for(session, base, adapters, steps, before)
    if engine.fused is None:
        raise SystemExit(f"the plain path would be measured: {engine.describe()}")
    base.model.train()
    options = TrainSettings(
        max_steps=ENDLESS, lr_scheduler_type="constant", warmup_steps=0, learning_rate=spec["learning_rate"]
    )
    session.ready(
        policies=list(engine.policies),
        engine=engine.describe(),
        versions=versions("topcoat", "torch", "transformers", "bitsandbytes"),
    )
    began = time.perf_counter()

    def record(row: dict[str, Any]) -> None:
        nonlocal began
        session.report(time.perf_counter() - began, row["loss"], row["grad_norm"], *steps.saw())
        if not session.wait():
            stop.stop = "the driver has what it wants"
        began = time.perf_counter()

    optimizer = make_optimizer(adapters.parameters(), options, folder=Path(spec["scratch"]))
    engine = replace(engine, graphs=settings["graphs"])
    replay = make_replay(engine, options, steps.budget, base.device, optimizer, print)
    warm = 0 if replay is None else warm_up(replay, steps, optimizer.trained)
    if session.wait():
        began = time.perf_counter()
        train(
            Training(
                parameters=adapters.parameters(),
                loss=make_loss(base, adapters, engine.fused),
                steps=steps,
                settings=options,
                peak_learning_rate=spec["learning_rate"],
                seed=0,
                optimizer=optimizer,
                scale=LossScale.for_dtype(base.compute_dtype),
                evaluate_every=ENDLESS,
                validate=lambda step: None,
                save=lambda best: None,
                record=record,
                explain=lambda batch: "a benchmark's documents",
                memory=lambda: memory_bytes(base.device),
                stop=stop,
                replay=replay,
            )
        )
    if replay is not None and (replay.given_up or replay.launched > warm):
        raise SystemExit(f"launches were measured, and not graphs: {replay.given_up or replay.describe()}")
    session.close()


if __name__ == "__main__":
    main()
