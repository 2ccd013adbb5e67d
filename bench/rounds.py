"""One workload measured: who is the best peer, then that peer and ours side by side, a step each in turn.

Peers are swept one after another: a step for warm-up and the gate, then SWEPT timed ones, or one where that is far
behind. The fastest that passes stays loaded. Then ours are loaded beside it, and every round asks each contender for
one step on the same documents, so that all meet the same moments of the machine. Where two contenders cannot be in
memory together (a GPU) the rounds are runs of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, REFERENCE, Contender
from bench.flops import Shape, step_flops
from bench.gates import expected, problems
from bench.process import Failed, Process
from bench.results import Row, tokens_per_s
from bench.workloads import Workload


@dataclass
class Measurement:
    """How a workload is measured, and where its rows go."""

    workload: Workload
    pythons: dict[str, str]
    """Side -> the interpreter of its environment."""
    cache: Path
    device: str
    threads: int
    rounds: int
    minutes: float
    """Of taking turns: after this the workload takes no more rounds than two."""
    keep: Callable[[Row], None]
    """Called with every row as soon as it is known, and again when it is complete."""
    memory_cap_bytes: int | None = None
    free_bytes: int | None = None
    """Memory that was free before any contender was loaded: what `auto` may plan with while others wait beside it."""
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.folder = self.cache / self.workload.name
        facts = json.loads((self.folder / "workload.json").read_text())
        self.shape, self.digest = Shape.of(facts["config"]), facts["digest"]
        self.documents: list[list[dict[str, list[int]]]] = json.loads(Path(facts["batches"]).read_text())
        self.spec = {name: facts[name] for name in ("model", "adapter", "batches", "rank", "alpha", "stored")}
        self.spec |= {"device": self.device, "tokens": self.workload.tokens, "row_tokens": self.workload.row_tokens}
        self.spec |= {"learning_rate": 1e-4, "max_grad_norm": 1.0, "memory_cap_bytes": self.memory_cap_bytes}
        self.spec["free_bytes"] = self.memory_cap_bytes or self.free_bytes
        self.reference: dict[str, Any] = {}

    def start(self, contender: Contender, stack: ExitStack) -> Process:
        """The contender, loaded. Raises Failed."""
        python = self.pythons[contender.side]
        process = Process(contender, python, self.spec, self.folder / "logs", self.threads)
        stack.enter_context(process)
        process.load()
        return process

    def make_reference(self) -> None:
        """First-step loss and gradient norm in float32, from the file of an earlier run on the same data if there."""
        path = self.folder / "reference.json"
        if path.exists():
            self.reference = json.loads(path.read_text())
        if self.reference.get("digest") == self.digest:
            return
        self.say(f"{self.workload.name}: the reference in float32")
        with ExitStack() as stack:
            process = self.start(REFERENCE, stack)
            step = process.step(None)
            process.close()
        self.reference = {"digest": self.digest, "loss": step["loss"], "grad_norm": step["grad_norm"]}
        path.write_text(json.dumps(self.reference))

    def row(self, process: Process) -> Row:
        """What is known about one contender."""
        contender, step = process.contender, process.steps[0]
        found = problems(step, self.reference, expected(self.documents[0]), contender.dtype)
        for at, later in enumerate(process.steps[1:], 1):
            if later["seen"] != expected(self.documents[at % len(self.documents)]):
                found.append(f"step {at} saw other tokens: {later['seen']}")
        row: Row = {
            "workload": self.workload.name,
            "contender": contender.name,
            "is_ours": contender.is_ours,
            "device": self.device,
            "threads": self.threads,
            "memory_cap_bytes": self.memory_cap_bytes,
            **process.facts,
            **process.peaks,
            "gate": {
                "passed": not found,
                "problems": found,
                "loss": step["loss"],
                "grad_norm": step["grad_norm"],
                "reference": {name: self.reference[name] for name in ("loss", "grad_norm")},
            },
            "steps": process.steps,
        }
        timed = [s for s in process.steps if s["round"] is not None]
        if timed:
            lengths = [len(document["input_ids"]) for document in self.documents[0]]
            policies = contender.policies(self.shape.layers, process.facts)
            row["tokens_per_s"] = tokens_per_s(row)
            row["seconds_median"] = step["tokens"] / row["tokens_per_s"]
            row["flops_per_step"] = step_flops(self.shape, lengths, step["targets"], self.spec["rank"], policies)
        return row

    def failed(self, contender: Contender, why: Failed) -> None:
        """Keep a row that says why there is no other."""
        self.say(f"  {contender.name} failed: {why}")
        row = {"workload": self.workload.name, "contender": contender.name, "is_ours": contender.is_ours}
        self.keep({**row, "failed": str(why), "steps": []})

    def tell(self, row: Row) -> None:
        """One line on a contender."""
        gate = "" if row["gate"]["passed"] else f"  STOPPED: {'; '.join(row['gate']['problems'])}"
        memory = f"{row['peak_bytes'] / 2**30:5.2f} GiB" if "peak_bytes" in row else "still loaded"
        self.say(f"  {row['contender']:26} {row['tokens_per_s']:8.1f} tokens/s  {memory}{gate}")


def measure(run: Measurement, names: Sequence[str]) -> None:
    """Sweep the peers among `names`, then take turns with ours."""
    run.make_reference()
    run.say(f"{run.workload.name}: {run.workload.title}")
    chosen = [CONTENDERS[name] for name in names]
    with ExitStack() as stack:
        best = _sweep(run, [c for c in chosen if not c.is_ours], stack)
        processes = [best] if best else []
        for contender in (c for c in chosen if c.is_ours):
            try:
                processes.append(_stepped(run, contender, stack, lambda process: False))
            except Failed as why:
                run.failed(contender, why)
        until = time.monotonic() + 60 * run.minutes
        for round_ in range(1, run.rounds + 1):
            if round_ > 2 and time.monotonic() > until:
                run.say(f"  {run.minutes:.1f} minutes are over: {round_ - 1} rounds of {run.rounds}")
                break
            for process in processes:
                process.step(round_)
        for process in processes:
            process.close()
            row = run.row(process)
            run.keep(row)
            run.tell(row)


SWEPT, BEHIND = 3, 1.5
"""Timed steps before the turns, and how many times slower than the best so far is not worth more than one."""


def _stepped(run: Measurement, contender: Contender, stack: ExitStack, is_behind: Callable[[Process], bool]) -> Process:
    """A warm-up and SWEPT timed steps, as many for all that take turns: then their documents stay the same."""
    process = run.start(contender, stack)
    process.step(None)
    process.step(0)
    for again in range(1, SWEPT if not is_behind(process) else 1):
        process.step(-again)
    return process


def _sweep(run: Measurement, peers: Sequence[Contender], stack: ExitStack) -> Process | None:
    """Some steps of each peer; the fastest of those to be compared with stays, the others end."""
    best: tuple[float, Process] | None = None

    def is_behind(process: Process) -> bool:
        return best is not None and tokens_per_s(run.row(process)) * BEHIND < best[0]

    for contender in peers:
        try:
            process = _stepped(run, contender, stack, is_behind)
        except Failed as why:
            run.failed(contender, why)
            continue
        row = run.row(process)
        allowed = not run.workload.against or contender.name in run.workload.against
        loser: Process | None = process
        if allowed and row["gate"]["passed"] and (best is None or row["tokens_per_s"] > best[0]):
            loser, best = best[1] if best else None, (row["tokens_per_s"], process)
            run.tell(row)
        if loser is not None:
            loser.close()
            row = run.row(loser)
            run.keep(row)
            run.tell(row)
    return best[1] if best else None


def measure_apart(run: Measurement, names: Sequence[str], steps: int) -> None:
    """Each contender alone on the device: `steps` timed steps a run after two of warm-up, runs in turn (ABCABC)."""
    run.make_reference()
    run.say(f"{run.workload.name}: {run.workload.title}")
    known: dict[str, Row] = {}
    for turn in range(run.rounds):
        for contender in (CONTENDERS[name] for name in names):
            try:
                with ExitStack() as stack:
                    process = run.start(contender, stack)
                    for warm_up in range(2 + steps):
                        process.step(None if warm_up < 2 else turn * steps + warm_up - 1)
                    process.close()
            except Failed as why:
                if contender.name not in known:
                    run.failed(contender, why)
                continue
            row = run.row(process)
            if contender.name in known:
                row = joined(known[contender.name], row)
            known[contender.name] = row
            run.keep(row)
            run.tell(row)


def joined(before: Row, after: Row) -> Row:
    """Two runs of one contender as one row: all steps, the higher peaks, and a gate that both passed."""
    row = {**after, "steps": before["steps"] + after["steps"]}
    for name in ("peak_bytes", "load_peak_bytes", "reserved_bytes", "host_peak_bytes"):
        if name in row:
            row[name] = max(before[name], after[name])
    if not before["gate"]["passed"]:
        row["gate"] = before["gate"]
    row["tokens_per_s"] = tokens_per_s(row)
    row["seconds_median"] = row["steps"][0]["tokens"] / row["tokens_per_s"]
    return row
