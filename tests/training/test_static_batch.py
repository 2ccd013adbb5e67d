"""What a graph reads holds the batch it was filled with, all of it, and nothing of the one before."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.data.batches import packed
from topcoat.data.pack import best_fit
from topcoat.kernels.row_counts import ROUND
from topcoat.training.objectives.sft import target_positions
from topcoat.training.static_batch import PIECES, StaticBatch, shape_of

CPU = torch.device("cpu")
drawn_lengths = st.lists(st.integers(1, 150), min_size=1, max_size=12)
BUDGET = 1024


def made(examples, lengths, seed, context):
    """A packed batch and its shape."""
    batch = packed(examples(lengths, seed, context), range(len(lengths)))
    return batch, shape_of(batch, len(target_positions(batch)[0]), BUDGET)


def filled(batch, shape, factor=1.0):
    static = StaticBatch(shape, CPU)
    static.fill(batch, target_positions(batch), factor)
    return static


@given(lengths=drawn_lengths, seed=st.integers(0, 99), context=st.sampled_from([0.0, 0.4, 0.9]))
@settings(max_examples=60, deadline=None)
def test_documents_positions_and_labels_are_those_of_the_batch(examples, lengths, seed, context):
    batch, shape = made(examples, lengths, seed, context)
    static = filled(batch, shape, 0.5)
    tokens = batch.input_ids.numel()
    assert torch.equal(static.input_ids[:, :tokens], batch.input_ids)
    assert torch.equal(static.position_ids[:, :tokens], batch.position_ids)
    borders = static.documents.borders
    assert torch.equal(borders[: len(batch.cu_seqlens)], batch.cu_seqlens)
    assert bool((borders.diff() >= 0).all())
    assert int(borders[-1]) == shape.tokens
    assert int(borders.diff().max()) <= static.documents.longest <= shape.tokens
    assert float(static.factor) == 0.5
    positions, targets = target_positions(batch)
    rows = torch.arange(shape.tokens) if static.rows is None else static.rows
    assert len(rows.unique()) == len(rows) == len(static.targets) == len(static.row_weights)
    counted = static.row_weights == 1
    assert bool((static.row_weights[~counted] == 0).all())
    assert torch.equal(rows[counted], positions)
    assert torch.equal(static.targets[counted], targets)


@given(lengths=drawn_lengths, others=drawn_lengths, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_second_batch_leaves_nothing_of_the_first(examples, lengths, others, seed):
    (first, one), (second, two) = made(examples, lengths, seed, 0.4), made(examples, others, seed + 1, 0.4)
    shape = one if one.tokens >= two.tokens else two
    shape = type(shape)(shape.tokens, shape.tokens, max(one.borders, two.borders), shape.tokens)
    again = StaticBatch(shape, CPU)
    again.fill(first, target_positions(first), 2.0)
    again.fill(second, target_positions(second), 3.0)
    fresh = filled(second, shape, 3.0)
    unused = "rows"  # every position is asked for
    for name, tensor in fresh.views._asdict().items():
        assert name == unused or torch.equal(getattr(again.views, name), tensor), name


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=24), context=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_little_is_padded(examples, lengths, context):
    batch, shape = made(examples, lengths, 0, context)
    part = BUDGET // PIECES
    assert shape.tokens % part == 0
    assert 0 <= shape.tokens - batch.input_ids.numel() < part
    assert shape.asked == shape.tokens or shape.asked % ROUND == 0
    assert shape.longest & (shape.longest - 1) == 0 or shape.longest == shape.tokens
    assert shape.borders & (shape.borders - 1) == 0


def test_shapes_are_few(examples):
    """Steps of 16 chat rows, most of them short and some long, as batches of 2,048 tokens: the commonest 24 shapes."""
    generator = torch.Generator().manual_seed(0)
    found = Counter()
    for seed in range(60):
        lengths = (torch.randn(16, generator=generator) * 0.7 + 4.5).exp().clamp(10, 600).int().tolist()
        share = 0.3 + 0.3 * float(torch.rand((), generator=generator))
        for group in best_fit(lengths, 2048):
            batch = packed(examples([lengths[at] for at in group], seed, share), range(len(group)))
            found[shape_of(batch, len(target_positions(batch)[0]), 2048)] += 1
    captured = sum(count for _, count in found.most_common(24))
    assert captured >= 0.95 * sum(found.values())
