"""The laboratory: every run of an experiment is a job that is done once, kept, and found again by what it was asked.

A job is a kind and a specification. It runs in a process of its own, so that its memory is its own and an interruption
loses the jobs under way; what it found is kept in bench/.cache/papers under the digest of both. An experiment asks for
its jobs first and reads what they found afterwards, so that they run side by side. `--quick` does the same with a tiny
model and a handful of rows and steps, in this process: it shows that everything runs, and says nothing of papers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.papers.data import Cut, rows_file
from bench.papers.jobs import Jobs, do_job
from bench.papers.sweeps import Sweep

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"
Row = dict[str, Any]
Found = Mapping[str, Any]
"""What a job found, or will have found when it is read."""


@dataclass
class Lab:
    """Where jobs are done and kept."""

    cache: Path
    quick: bool = False
    seeds: int | None = None
    """At most so many seeds, where an experiment asks for more."""
    again: bool = False
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    asked: list[tuple[Row, Found]] = field(default_factory=list)
    """Every job of this run, what it was and what it found."""
    at_once: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Jobs that run side by side, each with its share of the cores."""
    started: dict[str, Found] = field(default_factory=dict)
    """The jobs that this run began, by digest."""

    @property
    def threads(self) -> int:
        """Of one job."""
        return max(1, len(os.sched_getaffinity(0)) // self.at_once)

    @cached_property
    def jobs(self) -> Jobs:
        """Where jobs run."""
        return Jobs(self.at_once, self.threads)

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
            save_tiny(
                folder,
                hidden_size=512,
                intermediate_size=512,
                num_attention_heads=8,
                num_key_value_heads=4,
                max_position_embeddings=4096,
            )
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

    def do(self, kind: str, name: str, **spec: Any) -> Found:
        """What the job finds: from the cache, or done now. Reading it raises SystemExit where the job failed."""
        spec = {**spec, "model": self.model()}
        digest = digest_of(kind, spec)
        if digest not in self.started:
            kept = self.folder / "jobs" / f"{digest}.json"
            self.started[digest] = self._found(kind, name, spec, kept)
        self.asked.append(({"name": name, "kind": kind, "job": digest, **shown(spec)}, self.started[digest]))
        return self.started[digest]

    def _found(self, kind: str, name: str, spec: Row, kept: Path) -> Found:
        if kept.exists() and not self.again:
            found: Row = json.loads(kept.read_text(encoding="utf-8"))
            return found

        def keep(found: Row) -> Row:
            write_json(kept, found)
            self.say(f"  {name}: {told(found)}")
            return found

        return keep(do_job(kind, spec)) if self.quick else self.jobs.start(kind, spec, keep)

    @property
    def done(self) -> list[Row]:
        """What is told of every job in the file of results; waits for them."""
        return [{**what, **brief(found)} for what, found in self.asked]

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
    ) -> Found:
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
        return Sweep(rates, [self.train(name, adapter, rate, **more) for rate in rates])

    def seeds_of(self, name: str, adapter: Mapping[str, Any], rate: float, wanted: int, **more: Any) -> list[Found]:
        """The same arm with each of the seeds."""
        return [self.train(name, adapter, rate, seed=seed, **more) for seed in self.take_seeds(wanted)]


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
