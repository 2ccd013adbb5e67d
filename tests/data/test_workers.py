"""Workers: their number and speed change how fast the tokens come, never which; what stops one names the row."""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest
from feed_rows import rows, said

from topcoat.data import prepare, workers
from topcoat.data.load import load_data
from topcoat.data.plain_file import PlainFile
from topcoat.data.plain_lines import Unplain
from topcoat.data.sandbox import TemplateStopped
from topcoat.data.settings import DataSettings
from topcoat.data.words import NotSeparable, Words
from topcoat.errors import TopcoatError


@pytest.fixture(autouse=True)
def long_way(monkeypatch):
    """What these tests are about: every file goes to the workers."""

    def refuse(self, *arguments):
        raise Unplain

    monkeypatch.setattr(PlainFile, "encode", refuse)


def test_the_number_of_workers_changes_nothing(load, write, monkeypatch):
    monkeypatch.setattr(workers, "BATCH_ROWS", 7)
    monkeypatch.setattr(prepare, "BATCH_ROWS", 7)
    path = write("a.jsonl", rows(100))
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(workers, "MOST_WORKERS", count)
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        found.append(load(path, cache=False))
    assert found[0].identity() == found[1].identity() == found[2].identity()
    whole = load(write("b.jsonl", rows(100)))
    assert said(whole.train)[50][:2] == said(found[0].train)[50][:2]


def test_errors_come_in_the_order_of_the_rows_whoever_finds_them(load, write, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_ROWS", 4)
    broken = [{"prompt": f"q{i}", "completion": i if i % 3 == 0 else "a"} for i in range(90)]
    with pytest.raises(TopcoatError) as caught:
        load(write("a.jsonl", broken))
    places = [problem.what.split(":")[0] for problem in caught.value.problems]
    assert places[:3] == ["a.jsonl line 1", "a.jsonl line 4", "a.jsonl line 7"]
    assert len(places) == 21
    assert places[-1] == "and 10 more bad rows (30 in all)"


def test_what_is_odd_is_told_with_its_number_and_first_row(load, write, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_ROWS", 4)
    turn = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]
    odd = [{"role": "user", "content": "Hello."}, *turn]
    path = write("a.jsonl", [{"messages": odd if number in (6, 9) else turn} for number in range(12)])
    for _ in range(2):  # made, and from the cache
        assert "warning: 2 rows: two user turns follow each other (first: a.jsonl line 7)" in load(path).report.notes


def test_of_many_columns_a_few_are_told(load, write):
    path = write("a.jsonl", [{**row, **{f"k{n}": n for n in range(500)}} for row in rows(3)])
    note = next(note for note in load(path).report.notes if "recognised" in note)
    assert note.endswith("prompt, completion, k0, k1, k2, k3, k4, k5 and 494 more")


def test_a_bomb_names_the_template_and_the_row_and_loses_nothing(load, write):
    template = (
        "{% for m in messages %}{% if 'Question w 17' in m.content %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    path = write("a.jsonl", rows(40))
    with pytest.raises(TemplateStopped, match=r"a\.jsonl line 18: the chat template ran for over 1 s"):
        load(path, template=template)
    assert len(load(path).train) == 40


def test_a_template_that_fills_the_memory_at_one_row_is_stopped_there(load, write):
    template = (
        "{% for m in messages %}{% if 'Question w 5' in m.content %}{{ 'a' * 900000000 }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(TemplateStopped, match=r"a\.jsonl line 6: the chat template took over 256\.0 MiB"):
        load(write("a.jsonl", rows(10)), template=template)


def test_an_interrupt_leaves_no_process(load, write, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_ROWS", 2)
    started = []
    once = workers.Child

    def child():
        started.append(once())
        return started[-1]

    monkeypatch.setattr(workers, "Child", child)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def interrupt(*arguments):
        if len(started):
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare.StoreWriter, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(write("a.jsonl", rows(200)))
    assert len(started) == 1
    assert not started[0].is_alive


def test_words_that_do_not_add_up_are_encoded_whole(load, write, monkeypatch):
    path = write("a.jsonl", rows(10))
    expected = load(path)
    asked = []

    def encode(self, *arguments):
        asked.append(self)
        if len(asked) == 1:
            raise NotSeparable
        return once(self, *arguments)

    once = workers.Workers.encode
    monkeypatch.setattr(workers.Workers, "encode", encode)
    assert said(load(path, cache=False).train) == said(expected.train)
    assert len(asked) == 2
    assert Words is not None


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_the_bar_of_any_file_ends_full(chatml, folder, tmp_path, monkeypatch, ending):
    from topcoat.data import progress
    from topcoat.data.checks.fix import write_rows

    monkeypatch.setattr(progress, "QUICK_SECONDS", -1.0)
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0)
    many = [{"prompt": f"{i}?", "completion": noise.bytes(600).hex()} for i in range(3000)]
    write_rows(path, ending.removesuffix(".gz"), many)
    seen = []

    @contextmanager
    def bar(label, total):
        def advance(done, more):
            seen.append((label, done, total))

        yield advance

    load_data(DataSettings(train=str(path), validation=None), chatml.tokenizer, context_length=4096, seed=1, bar=bar)
    tokenizing = [(done, total) for label, done, total in seen if label == f"tokenizing a{ending} (MB)"]
    assert tokenizing[-1] == (path.stat().st_size // 10**6,) * 2
    assert [done for done, _ in tokenizing] == sorted(done for done, _ in tokenizing)
