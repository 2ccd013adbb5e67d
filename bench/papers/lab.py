"""The laboratory: every run of an experiment is a job that is done once, kept, and found again by what it was asked.

A job is a kind and a specification. It runs in a process of its own, so that its memory is its own and an interruption
loses one job; what it found is kept in bench/.cache/papers under the digest of both. `--quick` does the same with a
tiny model and a handful of rows and steps, in this process: it shows that everything runs, and says nothing of papers.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import Watch
from bench.papers.data import Cut, rows_file
from bench.papers.sweeps import Sweep

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"
KINDS = {
    "stored_model": "bench.papers.perplexity",
    "starts": "bench.papers.starts",
    "arm": "bench.papers.arms",
}
"""Kind of job -> the module whose function of that name does it."""

Row = dict[str, Any]


@dataclass
class Lab:
    """Where jobs are done and kept."""

    cache: Path
    quick: bool = False
    seeds: int | None = None
    """At most so many seeds, where an experiment asks for more."""
    again: bool = False
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    done: list[Row] = field(default_factory=list)
    """Every job of this run, for the file of results."""
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    fresh: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Where jobs and data lie."""
        return self.cache / ("papers-quick" if self.quick else "papers")

    def model(self) -> str:
        """The directory of the model, made if it is not there."""
        if not self.quick:
            base = self.cache / "models" / MODEL / "base"
            if not (base.parent / "made").exists():
                from bench.prepare import make_model

                make_model(MODEL, self.cache)
            return str(base)
        folder = self.folder / "model"
        if not (folder / "generation_config.json").exists():
            from topcoat.model.tiny import save_tiny

            folder.mkdir(parents=True, exist_ok=True)
            save_tiny(folder, hidden_size=512, intermediate_size=512, num_attention_heads=8, num_key_value_heads=4)
        return str(folder)

    def take_seeds(self, wanted: int) -> range:
        """Seeds from 0: as many as the experiment wants and this run grants."""
        most = 2 if self.quick else wanted if self.seeds is None else min(wanted, self.seeds)
        return range(min(wanted, most))

    def rates(self, grid: tuple[float, ...]) -> tuple[float, ...]:
        """The learning rates to try."""
        return grid[:2] if self.quick else grid

    def rows(self, name: str, part: str, count: int) -> str:
        """A file of rows."""
        return str(rows_file(name, part, min(count, 6) if self.quick else count, self.folder))

    def do(self, kind: str, name: str, **spec: Any) -> Row:
        """What the job finds: from the cache, or done now. Raises SystemExit where it fails."""
        spec = {**spec, "model": self.model()}
        digest = digest_of(kind, spec)
        kept = self.folder / "jobs" / f"{digest}.json"
        if not kept.exists() or (self.again and digest not in self.fresh):
            self.fresh.add(digest)
            began, own, watch = time.monotonic(), _processor_s(), Watch.begin()
            found = self._now(kind, spec, kept)
            seconds, own = time.monotonic() - began, _processor_s() - own
            others = max(0.0, watch.end()["other_load"] - own / max(seconds, 1e-3))
            found |= {"seconds": round(seconds, 1), "cpu_s": round(own, 1), "busy_cores": round(others, 2)}
            write_json(kept, found)
            self.say(f"  {name}: {told(found)}")
        row: Row = json.loads(kept.read_text(encoding="utf-8"))
        self.done.append({"name": name, "kind": kind, "job": digest, **shown(spec), **brief(row)})
        return row

    def train(
        self,
        name: str,
        adapter: Mapping[str, Any],
        rate: float,
        *,
        data: Cut,
        seed: int = 0,
        quantization: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        answers: int = 0,
        **more: Any,
    ) -> Row:
        """One arm: `adapter`, `quantization` and `settings` (of training) in a recipe's words, on a cut of rows.

        `answers` validation rows are answered and compared word for word; see `arms.py` for `before` and `round_to`.
        """
        train = {"learning_rate": rate, **(settings or {}), **({"max_steps": 2} if self.quick else {})}
        return self.do(
            "arm",
            f"{name}, rate {rate:g}, seed {seed}",
            adapter=dict(adapter),
            quantization=None if quantization is None else dict(quantization),
            train=self.rows(data.name, "train", data.train),
            validation=self.rows(data.name, "validation", data.validation),
            train_settings=train,
            seed=seed,
            answers=min(answers, 4) if self.quick else answers,
            **({"max_new_tokens": 4} if self.quick else {}),
            **more,
        )

    def sweep(self, name: str, adapter: Mapping[str, Any], grid: tuple[float, ...], **more: Any) -> Sweep:
        """One arm at each learning rate of the grid."""
        rates = self.rates(grid)
        return Sweep(rates, [self.train(name, adapter, rate, **more)["loss"] for rate in rates])

    def _now(self, kind: str, spec: Row, kept: Path) -> Row:
        if self.quick:
            return do_job(kind, spec)
        kept.parent.mkdir(parents=True, exist_ok=True)
        asked = kept.with_suffix(".asked")
        write_json(asked, {"kind": kind, "spec": spec})
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "bench.papers.lab", str(asked)]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, text=True)
        asked.unlink()
        if done.returncode:
            raise SystemExit(f"the job ended with {done.returncode}: {json.dumps(spec)}")
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found


def _processor_s() -> float:
    """Processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def do_job(kind: str, spec: Mapping[str, Any]) -> Row:
    """One job, in this process."""
    job: Callable[[Mapping[str, Any]], Row] = getattr(importlib.import_module(KINDS[kind]), kind)
    return job(spec)


def digest_of(kind: str, spec: Mapping[str, Any]) -> str:
    """What a job is kept under: where files lie does not count, what is in them does by its name."""
    text = json.dumps([kind, shown(spec)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def shown(spec: Mapping[str, Any]) -> Row:
    """The specification with files by their names alone."""

    def short(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: short(inner) for key, inner in value.items()}
        return Path(value).name if isinstance(value, str) and os.sep in value else value

    return {key: short(value) for key, value in spec.items() if key != "model"} | {
        "model": Path(spec["model"]).parent.name
    }


def brief(row: Mapping[str, Any]) -> Row:
    """What of a job's findings goes into the results: figures, not what each row or window gave."""
    return {key: value for key, value in row.items() if key not in ("losses", "rows", "rounded", "layers", "answers")}


def told(row: Mapping[str, Any]) -> str:
    """One line on a job."""
    names = ("loss", "exact_match", "tokens_per_s", "bits_per_weight", "mean_error", "entropy", "seconds")
    return ", ".join(f"{name} {row[name]:.4g}" for name in names if row.get(name) is not None)


def write_json(path: Path, value: Any) -> None:
    """The whole file at once: an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(do_job(wanted["kind"], wanted["spec"])))
