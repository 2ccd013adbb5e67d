"""Speed of tokenizing and packing a JSON Lines file: python -m bench.data_feed FILE MODEL [--tokens 2048] [--out FILE].

FILE is a file of rows, MODEL a folder with a tokenizer. Writes JSON with what was measured and on what: megabytes of
the file per second of wall clock, and per second of processor time of this process and its children together, which
says what two undisturbed cores would do; then tokens collated per second and how full packed rows are. The cache is an
empty folder. Rendering's process is started before the clock, and how long that takes is a figure of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from bench.figures import publish


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in each)


def running_seconds(process: int) -> float:
    """Processor time that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure once and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2048, help="max_length, and the tokens of a packed row")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    from transformers import AutoTokenizer

    from topcoat.data.batches import StepPlan, micro_batches
    from topcoat.data.load import load_data
    from topcoat.data.render import Renderer
    from topcoat.data.sandbox import kept_child
    from topcoat.data.settings import DataSettings

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    megabytes, load = arguments.file.stat().st_size / 1e6, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPCOAT_CACHE"] = folder
        settings = DataSettings(
            train=str(arguments.file), validation=None, max_length=arguments.tokens, overlong="drop"
        )
        began = time.perf_counter()
        Renderer(tokenizer)
        starting = time.perf_counter() - began
        used = processor_seconds() + running_seconds(kept_child()._process.pid)
        began = time.perf_counter()
        data = load_data(settings, tokenizer, context_length=arguments.tokens, seed=1)
        seconds = time.perf_counter() - began
        kept_child().close()  # its time is counted once it has ended
        used = processor_seconds() - used
        plan = StepPlan(data.train.lengths, seed=1, batch_size=512)
        began, tokens, rows = time.perf_counter(), 0, 0
        for step in range(plan.total_steps):
            chosen = plan.step_examples(step)
            for batch in micro_batches(data.train, chosen, budget_tokens=arguments.tokens, packing=True):
                tokens, rows = tokens + batch.n_tokens, rows + 1
        collating = time.perf_counter() - began
    figures = {
        "megabytes": round(megabytes, 1),
        "rows": data.report.rows,
        "tokens": data.report.tokens,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "seconds_to_start_rendering": round(starting, 1),
        "megabytes_per_second": round(megabytes / seconds, 1),
        "megabytes_per_second_on_two_cores_by_processor_time": round(2 * megabytes / used, 1),
        "collated_tokens_per_second": round(tokens / collating),
        "packed_fill": round(tokens / (rows * arguments.tokens), 4),
    }
    publish(figures, load, arguments.out)


if __name__ == "__main__":
    main()
