"""Micro batches by graphs give what launches give, or none are used; a tape of operators stands for the GPU."""

from __future__ import annotations

import pytest
import torch
from recorded_ops import static_attention
from replay_rig import Rig, batches

from topcoat.data.batches import packed
from topcoat.kernels.recompute import LADDER
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.replay import MOST_GRAPHS, PROOFS

FAMILIES = ["llama", "qwen3", "gemma3_text", "phi3", "smollm3"]


@pytest.fixture(autouse=True)
def attention_reads_borders_late():
    with static_attention():
        yield


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["none", "block"])
def test_a_replay_gives_the_bits_of_launches_whatever_the_batch_holds(family, policy, examples):
    rig = Rig(family, policy)
    launches = rig.launches()
    for batch in batches(examples, PROOFS + 3):
        expected = rig.gradient(launches, batch)
        found = rig.gradient(rig.replay, batch)
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert (rig.replay.launched, rig.replay.replayed) == (1 + PROOFS, 2)
    assert rig.said == []


@pytest.mark.parametrize("policy", LADDER)
def test_a_padded_batch_has_the_loss_and_the_gradient_of_the_plain_one(policy, examples):
    rig = Rig(policy=policy)
    for batch in batches(examples, 2):
        loss, gradient = rig.gradient(rig.plain, batch)
        found, padded = rig.gradient(rig.replay, batch)
        assert found == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(padded, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_updated_parameters_and_another_factor_reach_the_graph(examples):
    rig = Rig()
    launches = rig.launches()
    for at, batch in enumerate(batches(examples, PROOFS + 4)):
        with torch.no_grad():
            rig.trained.values.add_(0.01 * torch.randn_like(rig.trained.values))
        factor = 2.0 ** (at - 3)
        expected, found = (rig.gradient(way, batch, factor) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert rig.replay.replayed == 3


def test_gradients_of_several_micro_batches_add_up(examples):
    rig = Rig()
    given = batches(examples, PROOFS + 3)
    alone = [rig.gradient(rig.launches(), batch)[1] for batch in given]
    rig.trained.zero()
    for batch in given:
        rig.replay(batch, 0.25)
    torch.testing.assert_close(rig.trained.gradients, torch.stack(alone).sum(0))


def test_a_number_kept_from_the_capture_is_found_out_on_the_next_batch(examples):
    host = {"weight": 1.0}
    rig = Rig(loss=lambda batch: static_sft(rig.fused, batch) * host["weight"])
    launches = rig.launches()
    for at, batch in enumerate(batches(examples, PROOFS + 3)):
        host["weight"] = 1.0 if at < PROOFS else 1.1 + at
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert len(rig.said) == 1
    assert rig.said[0].startswith("no CUDA graphs from here on (a graph's loss is off by 6.8e-01 and its gradient by")
    assert (rig.capture.captures, rig.replay.replayed) == (1, 0)


@pytest.mark.parametrize("field", ["input_ids", "position_ids", "borders", "rows", "targets", "row_weights"])
def test_any_tensor_that_is_not_filled_anew_is_found_out(field, examples, monkeypatch):
    rig = Rig()
    given = batches(examples, PROOFS + 1)
    for batch in given[:PROOFS]:
        rig.gradient(rig.replay, batch)
    known = next(iter(rig.replay._known.values()))
    tensor, graph = getattr(known.batch._fields, field), known.graph
    stale = tensor.clone()
    monkeypatch.setattr(known, "graph", lambda: (tensor.copy_(stale), graph()))
    rig.gradient(rig.replay, given[PROOFS])
    assert len(rig.said) == 1, f"a stale {field} was believed"


def test_a_buffer_that_has_moved_makes_the_graphs_begin_again(examples):
    rig = Rig()
    launches = rig.launches()
    for batch in batches(examples, PROOFS + 2):
        rig.gradient(rig.replay, batch)
    assert rig.replay.replayed == 1
    larger = packed(examples([120] * 8, seed=9), range(8))
    rig.gradient(rig.plain, larger)  # validation, say: the buffers of all layers grow
    for batch in batches(examples, PROOFS + 3):
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert rig.capture.captures == 2
    assert rig.replay.replayed == 3
    assert rig.said == []


def test_a_batch_without_labels_adds_nothing_and_proves_nothing(examples):
    rig = Rig()
    empty = packed(examples([20, 30]), range(2))
    empty.labels.fill_(-100)
    empty.n_target_tokens = 0
    for _ in range(PROOFS + 2):
        loss, gradient = rig.gradient(rig.replay, empty)
        assert loss == 0
        assert not gradient.any()
    assert rig.capture.captures == 0


def test_a_loss_that_is_not_finite_proves_nothing(examples):
    rig = Rig()
    given = batches(examples, PROOFS + 2)
    for batch in given[:2]:
        rig.gradient(rig.replay, batch)
    with torch.no_grad():
        rig.trained.values.fill_(torch.nan)
    for batch in given:
        assert rig.gradient(rig.replay, batch)[0] != rig.gradient(rig.replay, batch)[0]  # NaN
    assert rig.replay.replayed == 0
    assert rig.said == []


def test_the_shape_that_was_not_met_for_longest_goes_first(examples):
    rig = Rig(loss=lambda batch: batch.targets.sum() * rig.trained.parameters[first].sum())
    first = next(iter(rig.trained.parameters))
    for documents in range(1, MOST_GRAPHS + 4):
        rig.replay(packed(examples([70 * documents], seed=documents), [0]), 1.0)
    assert len(rig.replay._known) == MOST_GRAPHS
    rig.replay.forget()
    assert not rig.replay._known


def test_waiting_inside_ends_the_graphs_and_not_the_run(examples):
    rig = Rig(loss=lambda batch: static_sft(rig.fused, batch) * (1.0 if batch.targets.sum().item() else 0.0))
    launches = rig.launches()
    for batch in batches(examples, 4):
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert rig.said == [
        "no CUDA graphs from here on (a micro batch cannot be captured: operation not permitted when stream is "
        "capturing: _local_scalar_dense); the run goes on by launches, with the same results"
    ]
    assert rig.replay.replayed == 0
