"""Jobs side by side: each in a process of its own with its share of the cores, and findings that are waited for when
they are read.

Two runs of one thread each do a quarter more than one run of two threads (measured on two cores), so as many jobs run
at once as there are cores. A process is forked from a server that has imported torch and the product already.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from bench.machine import Watch

KINDS = {
    "stored_model": "bench.papers.perplexity",
    "starts": "bench.papers.starts",
    "arm": "bench.papers.arms",
}
"""Kind of job -> the module whose function of that name does it."""

Row = dict[str, Any]


class Finding(Mapping[str, Any]):
    """What a job finds. Reading anything of it waits for the job; a job that fails raises SystemExit then."""

    def __init__(self, future: Future[Row]) -> None:
        self._future = future

    def __getitem__(self, key: str) -> Any:
        return self._future.result()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._future.result())

    def __len__(self) -> int:
        return len(self._future.result())


class Jobs:
    """Runs jobs, `at_once` of them at a time, in processes of `threads` threads each."""

    def __init__(self, at_once: int, threads: int) -> None:
        self._at_once = at_once
        self._workers = ThreadPoolExecutor(at_once)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the server's torch when it is imported
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*KINDS.values()])

    def start(self, kind: str, spec: Row, keep: Callable[[Row], Row]) -> Finding:
        """Begin as soon as a process is free; what is found goes through `keep`."""
        return Finding(self._workers.submit(lambda: keep(self._done(kind, spec))))

    def _done(self, kind: str, spec: Row) -> Row:
        began, watch = time.monotonic(), Watch.begin()
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_send, args=(theirs, kind, spec))
        process.start()
        theirs.close()
        try:
            found: Row = ours.recv()
        except EOFError:
            process.join()
            raise SystemExit(f"the job ended with {process.exitcode}: {kind} {spec}") from None
        process.join()
        seconds = time.monotonic() - began
        # the jobs beside this one are taken to have been there, and busy, all the time: others used at least the rest
        beside = watch.end()["other_load"] - found["cpu_s"] / seconds - (self._at_once - 1)
        return {**found, "seconds": round(seconds, 1), "busy_cores": round(max(0.0, beside), 2)}


def do_job(kind: str, spec: Mapping[str, Any]) -> Row:
    """One job, in this process."""
    job: Callable[[Mapping[str, Any]], Row] = getattr(importlib.import_module(KINDS[kind]), kind)
    return job(spec)


def _send(to: Connection, kind: str, spec: Row) -> None:
    found = do_job(kind, spec)
    times = os.times()
    to.send({**found, "cpu_s": round(times.user + times.system + times.children_user + times.children_system, 1)})
    to.close()
