"""Steps and batches: what a step holds is pure, every example comes once an epoch, packing loses nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.data.batches import ROUND, Batches, StepPlan, micro_batches, order, worst_batch
from topcoat.data.load import load_data
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.pack import best_fit, group_similar
from topcoat.data.render import Example
from topcoat.data.rows import Row
from topcoat.data.settings import DataSettings

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=50)
DRAWN = settings(max_examples=60, deadline=None)


def make(lengths: list[int]) -> list[Example]:
    """Examples whose tokens are all different; every third one is context."""
    found, at = [], 1
    for number, n in enumerate(lengths):
        ids = list(range(at, at + n))
        labels = [IGNORE_INDEX if i % 3 == 0 else i for i in ids]
        found.append(Example(ids, labels, Row({}, "a.jsonl", number + 1)))
        at += n
    return found


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    assert order(1, 0, 8) == [7, 6, 0, 2, 4, 1, 5, 3]  # as written down once: the same on every machine and version
    assert order(1, 0, 100) == order(1, 0, 100)
    assert len({tuple(order(seed, epoch, 100)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@DRAWN
@given(LENGTHS, st.integers(0, 99), st.integers(1, 9), st.none() | st.integers(1, 60))
def test_every_example_comes_exactly_once_an_epoch(lengths, seed, batch_size, batch_tokens):
    plan = StepPlan(lengths, seed=seed, epochs=2, batch_size=batch_size, batch_tokens=batch_tokens)
    epochs: dict[int, list[int]] = {0: [], 1: []}
    for step in range(plan.total_steps):
        epochs[plan.epoch_of(step)[0]] += plan.step_examples(step)
    assert all(sorted(seen) == list(range(len(lengths))) for seen in epochs.values())
    assert epochs[1] == order(seed, 1, len(lengths))


@DRAWN
@given(LENGTHS, st.none() | st.integers(1, 60), st.data())
def test_any_step_can_be_sought_without_the_ones_before_it(lengths, batch_tokens, data):
    settings = {"seed": 5, "epochs": 3, "batch_size": 4, "batch_tokens": batch_tokens}
    walked = StepPlan(lengths, **settings)
    steps = [walked.step_examples(step) for step in range(walked.total_steps)]
    step = data.draw(st.integers(0, walked.total_steps - 1))
    assert StepPlan(lengths, **settings).step_examples(step) == steps[step]


def test_a_step_takes_examples_until_the_token_budget_is_reached():
    plan = StepPlan([10] * 7, seed=0, batch_tokens=25)
    assert [len(plan.step_examples(step)) for step in range(plan.total_steps)] == [3, 3, 1]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [
        (1, None, 4),
        (3, None, 12),
        (0.5, None, 2),
        (0.6, None, 3),
        (2.25, None, 9),
        (0.01, None, 1),
        (1, 50, 50),
        (9, 2, 2),
    ],
)
@pytest.mark.parametrize("batch_tokens", [None, 8])
def test_the_number_of_steps_is_known_beforehand(epochs, max_steps, expected, batch_tokens):
    plan = StepPlan([2] * 13, seed=0, epochs=epochs, max_steps=max_steps, batch_size=4, batch_tokens=batch_tokens)
    assert plan.total_steps == expected
    assert plan.step_examples(plan.total_steps - 1)


def test_there_is_no_step_before_the_first():
    with pytest.raises(IndexError, match="there is no step -1"):
        StepPlan([1], seed=0).step_examples(-1)
    with pytest.raises(ValueError, match="at least one example"):
        StepPlan([], seed=0)


@DRAWN
@given(LENGTHS, st.integers(1, 60))
def test_packing_places_each_example_once_and_within_the_budget(lengths, budget):
    for pack in (best_fit, group_similar):
        rows = pack(lengths, budget)
        assert sorted(at for row in rows for at in row) == list(range(len(lengths)))
        for row in rows:
            sizes = [lengths[at] for at in row]
            used = sum(sizes) if pack is best_fit else len(row) * max(sizes)
            assert used <= budget or len(row) == 1


@DRAWN
@given(LENGTHS, st.integers(1, 60), st.booleans())
def test_batches_hold_every_token_and_label_of_their_examples(lengths, budget, packing):
    examples = make(lengths)
    batches = micro_batches(examples, range(len(lengths)), budget_tokens=budget, packing=packing)
    seen = {}
    for batch in batches:
        if packing:
            assert batch.input_ids.shape[0] == 1
            assert batch.attention_mask is None
            borders = batch.cu_seqlens.tolist()
            parts = [(0, slice(a, b)) for a, b in itertools.pairwise(borders)]
            assert borders[-1] == batch.input_ids.shape[1]
            assert borders[-1] % ROUND == 0
            if len(parts) > len(batch.rows):  # the filling: a document of its own, nothing of which is trained
                _, filling = parts.pop()
                assert filling.stop - filling.start < ROUND
                assert (batch.labels[0, filling] == IGNORE_INDEX).all()
        else:
            assert batch.cu_seqlens is None
            parts = [(row, slice(0, int(n))) for row, n in enumerate(batch.attention_mask.sum(1))]
            assert (batch.labels[batch.attention_mask == 0] == IGNORE_INDEX).all()
        for index, (row, part) in zip(batch.rows, parts, strict=True):
            ids, labels = batch.input_ids[row, part].tolist(), batch.labels[row, part].tolist()
            assert batch.position_ids[row, part].tolist() == list(range(len(ids)))
            assert labels[0] == IGNORE_INDEX  # never predicted from the document before it
            seen[index] = (ids, labels[1:])
        assert batch.n_target_tokens == int((batch.labels != IGNORE_INDEX).sum())
        assert batch.n_target_tokens == sum(examples[index].n_target_tokens for index in batch.rows)
        assert batch.n_tokens == sum(len(examples[index].input_ids) for index in batch.rows)
    assert seen == {i: (e.input_ids, e.labels[1:]) for i, e in enumerate(examples)}


@DRAWN
@given(LENGTHS, st.integers(1, 60), st.booleans())
def test_the_worst_batch_is_the_largest_of_the_run(lengths, budget, packing):
    examples = make(lengths)
    plan = StepPlan(lengths, seed=1, epochs=2, batch_size=5)
    sizes = [
        batch.input_ids.numel()
        for step in range(plan.total_steps)
        for batch in micro_batches(examples, plan.step_examples(step), budget_tokens=budget, packing=packing)
    ]
    worst = worst_batch(plan, examples, budget_tokens=budget, packing=packing)
    assert worst.input_ids.numel() == max(sizes)


def test_of_equally_large_batches_the_one_with_the_most_labels_is_the_worst():
    lengths = [20, 20, 20, 20]
    plan = StepPlan(lengths, seed=1, epochs=1, batch_size=1)
    worst = worst_batch(plan, make(lengths), budget_tokens=20, packing=True, targets=[3, 5, 19, 1])
    assert worst.rows == [2]


def test_a_batch_moves_as_a_whole():
    (batch,) = micro_batches(make([3, 2]), [0, 1], budget_tokens=9, packing=True)
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.cu_seqlens.device.type} == {"meta"}
    assert moved.rows == batch.rows


@DRAWN
@given(LENGTHS, st.integers(1, 60), st.booleans())
def test_batches_on_demand_are_those_made_at_once(lengths, budget, packing):
    examples = make(lengths)
    at_once = micro_batches(examples, range(len(lengths)), budget_tokens=budget, packing=packing)
    on_demand = Batches(examples, len(lengths), budget_tokens=budget, packing=packing)
    assert [batch.rows for batch in on_demand] == [batch.rows for batch in at_once]
    assert all(a.input_ids.equal(b.input_ids) for a, b in zip(on_demand, at_once, strict=True))
    assert len(Batches(examples, 0, budget_tokens=budget, packing=packing)) == 0


@DRAWN
@given(LENGTHS, st.integers(40, 90), st.integers(1, 20))
def test_packing_in_windows_places_each_example_once_in_bounded_rows(lengths, budget, window):
    rows = best_fit(lengths, budget, window)
    assert sorted(at for row in rows for at in row) == list(range(len(lengths)))
    assert all(sum(lengths[at] for at in row) <= budget for row in rows)


def test_windows_lose_little_and_public_chats_fill_their_rows(shared_data, chat_of, tmp_path):
    import random

    draw = random.Random(0)
    lengths = [min(2048, 5 + int(draw.lognormvariate(5, 1))) for _ in range(20_000)]
    for window in (64, 4096):
        assert sum(lengths) / (2048 * len(best_fit(lengths, 2048, window))) > 0.97
    tokenizer = chat_of("chatml").tokenizer
    for file in ("chat_oasst_train.jsonl", "chat_sharegpt.json"):
        settings = DataSettings(train=str(shared_data / file), validation=None, max_length=2048, overlong="drop")
        found = load_data(settings, tokenizer, context_length=2048, seed=1).train.lengths.tolist()
        fewest = -(-sum(found) // 2048)  # 150 short chats fill 10.5 rows
        rows = len(best_fit(found, 2048))
        assert rows == fewest or sum(found) / (2048 * rows) > 0.97, file
