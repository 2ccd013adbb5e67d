"""Mixtures: every file has its share of every epoch, in an order that follows from seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
from feed_rows import rows

from topcoat.data.batches import StepPlan, micro_batches
from topcoat.data.order import Order, shares
from topcoat.data.settings import MixturePart


def mixed(write, weights=(3, 1), sizes=(100, 60)) -> list[MixturePart]:
    return [
        MixturePart(train_file=write(f"{name}.jsonl", rows(size, name)), weight=weight)
        for name, size, weight in zip("ab", sizes, weights, strict=True)
    ]


def plan_of(data, **settings) -> StepPlan:
    return StepPlan(data.train.lengths, part=data.train.part, weights=data.weights, seed=5, **settings)


def test_a_mixture_keeps_its_proportions_in_every_epoch(load, write):
    data = load(mixture=mixed(write))
    plan = plan_of(data, epochs=3, batch_size=8)
    assert data.report.rows == 160
    for epoch in range(3):
        steps = [s for s in range(plan.total_steps) if plan.epoch_of(s)[0] == epoch]
        drawn = [index for step in steps for index in plan.step_examples(step)]
        files = [data.train[index].row.file.rpartition("/")[2] for index in drawn]
        assert (files.count("a.jsonl"), files.count("b.jsonl")) == (120, 40)
        half = files[: len(files) // 2].count("a.jsonl")
        assert 45 < half < 75  # mixed, not one after the other
    # a small part repeats evenly, a large one goes on where it stopped
    every = [index for step in range(plan.total_steps) for index in plan.step_examples(step)]
    counts = np.bincount(every, minlength=160)
    assert counts[:100].min() >= 3
    assert counts[:100].max() <= 4
    assert set(counts[100:]) == {2}


def test_any_step_of_a_mixture_can_be_sought_and_each_row_knows_its_place(load, write):
    data = load(mixture=mixed(write))
    walked = plan_of(data, epochs=2, batch_size=7)
    steps = [walked.step_examples(step) for step in range(walked.total_steps)]
    for step in (40, 3, 25):
        assert plan_of(data, epochs=2, batch_size=7).step_examples(step) == steps[step]
    assert data.train[100].row.place == "b.jsonl line 1"
    batch = micro_batches(data.train, steps[0], budget_tokens=4096, packing=True)[0]
    assert sorted(batch.rows) == sorted(steps[0])


def test_a_mixture_without_weights_is_every_row_once_an_epoch(load, write):
    data = load(mixture=mixed(write, weights=(None, None)))
    assert data.weights is None
    plan = plan_of(data, batch_size=16)
    drawn = sorted(index for step in range(plan.total_steps) for index in plan.step_examples(step))
    assert drawn == list(range(160))


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.2, 0.1), (1e-6, 1), (5, 3, 3, 3)])
@pytest.mark.parametrize("n", [4, 7, 100, 1001])
def test_shares_add_up_and_no_part_is_left_out(weights, n):
    found = shares(weights, n)
    assert sum(found) == n
    assert min(found) >= 1
    exact = [n * weight / sum(weights) for weight in weights]
    assert all(abs(a - b) <= 1 for a, b in zip(found, exact, strict=True))
    assert len(Order(n).epoch(1, 0)) == n


def test_held_out_rows_come_from_all_parts(load, write):
    data = load(mixture=mixed(write), validation=0.25)
    assert {e.row.file.rpartition("/")[2] for e in data.validation} == {"a.jsonl", "b.jsonl"}
    assert len(data.validation) == 40
    assert all(e.reference for e in data.validation)
