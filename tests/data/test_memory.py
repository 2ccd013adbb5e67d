"""Memory: files several times as large as what is there are fed whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from feed_rows import rows

from topcoat.data.load import bytes_of


def test_a_data_set_holds_few_bytes_an_example(load, write):
    data = load(write("a.jsonl", rows(500)))
    assert bytes_of(data) == 500 * (17 + 24)
    store = data.train.parts[0].store
    tokens = store.n_tokens
    assert store.n_bytes < 4.2 * tokens + 64 * 500


STREAM = """if True:
    import json, os, sys, threading, time
    from transformers import PreTrainedTokenizerFast
    from topcoat.data.batches import StepPlan, micro_batches
    from topcoat.data.load import load_data
    from topcoat.data.settings import DataSettings
    def held():
        return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
    path, tokenizer = sys.argv[1:]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    small = os.path.join(os.path.dirname(path), "small.jsonl")
    load_data(DataSettings(train=small, validation=None), tokenizer, context_length=4096, seed=1)
    before, peak = held(), [0]
    def watch():
        while True:
            peak[0] = max(peak[0], held())
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
    data = load_data(DataSettings(train=path, validation=None), tokenizer, context_length=4096, seed=1)
    plan = StepPlan(data.train.lengths, seed=1, batch_size=64)
    for step in range(0, plan.total_steps, 20):
        micro_batches(data.train, plan.step_examples(step), budget_tokens=2048, packing=True)
    print(json.dumps({"grown": peak[0] - before, "rows": len(data.train), "tokens": data.report.tokens}))
"""


def stream(write, chatml, tmp_path, megabytes: int) -> dict:
    write("small.jsonl", rows(10))
    words = "What colour is the coat of the model that answers questions about weights and losses? " * 24
    with open(tmp_path / "big.jsonl", "w", encoding="utf-8") as file:
        for number in range(megabytes * 500):
            known = number % 1000  # what is kept of words that were met is bounded, and another matter
            file.write(json.dumps({"prompt": f"{known} {words[: number % 1500]}", "completion": words[:1000]}) + "\n")
    chatml.tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", STREAM, str(tmp_path / "big.jsonl"), str(tmp_path / "tokenizer")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    size = (tmp_path / "big.jsonl").stat().st_size
    assert found["rows"] == megabytes * 500
    return {**found, "size": size}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(write, folder, chatml, tmp_path):
    few, many = (stream(write, chatml, tmp_path, megabytes) for megabytes in (80, 250))
    assert many["size"] > 3 * few["size"]
    assert many["size"] > 2 * many["grown"]
    of_threads = 24 * 2**20  # their buffers come to their size as it happens
    grown = many["grown"] - few["grown"] - of_threads
    assert grown < 250 * (many["rows"] - few["rows"])  # views and orders; a row has 2 kB


LIMITED = """if True:
    import json, os, resource, sys
    from transformers import PreTrainedTokenizerFast
    from topcoat.data.batches import StepPlan, micro_batches
    from topcoat.data.load import load_data
    from topcoat.data.settings import DataSettings
    path, tokenizer, headroom = sys.argv[1:]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    small = os.path.join(os.path.dirname(path), "small.jsonl")
    load_data(DataSettings(train=small, validation=None), tokenizer, context_length=4096, seed=1)
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    # the store's pages are the disk's, but mapping them takes address space
    resource.setrlimit(resource.RLIMIT_AS, (now + int(headroom),) * 2)
    data = load_data(DataSettings(train=path, validation=None), tokenizer, context_length=4096, seed=1)
    plan = StepPlan(data.train.lengths, seed=1, batch_size=64)
    tokens = 0
    for step in range(plan.total_steps):
        for batch in micro_batches(data.train, plan.step_examples(step), budget_tokens=2048, packing=True):
            tokens += batch.n_tokens
    print(json.dumps({"tokens": tokens, "all": data.report.tokens, "rows": len(data.train)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS, and reads /proc")
def test_a_file_several_times_the_memory_is_fed_whole(write, folder, chatml, tmp_path):
    write("small.jsonl", rows(10))
    blank = " " * 8000  # of a field that is not trained on: the file is large, its tokens are few
    with open(tmp_path / "big.jsonl", "w", encoding="utf-8") as file:
        for number in range(80_000):
            row = {"prompt": f"What is {number}?", "completion": f"It is {number}.", "note": blank}
            file.write(json.dumps(row) + "\n")
    size, headroom = (tmp_path / "big.jsonl").stat().st_size, 160 * 2**20
    assert size > 3.5 * headroom
    chatml.tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "big.jsonl"), str(tmp_path / "tokenizer"), str(headroom)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["MALLOC_ARENA_MAX"] = "1"  # an arena reserves 64 MiB of addresses a thread, whatever it holds
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 80_000
    assert found["tokens"] == found["all"]
