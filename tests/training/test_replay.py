"""Micro batches by graphs give what launches give, or none are used; a tape of operators stands for the GPU."""

from __future__ import annotations

import pytest
import torch
from recorded_ops import static_attention
from replay_rig import Rig, batches

from topcoat.data.batches import packed
from topcoat.kernels import decoder
from topcoat.kernels.recompute import LADDER
from topcoat.training import replay
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.replay import PROOFS

FIELDS = {"input_ids", "position_ids", "borders", "rows", "targets", "row_weights", "factor"}
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
        rig.update()
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


def test_graphs_read_four_bit_weights(examples, tmp_path):
    rig = Rig(folder=tmp_path / "model")
    launches = rig.launches()
    for batch in batches(examples, PROOFS + 3):
        rig.update()
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert rig.replay.replayed == 2


def test_updated_parameters_and_another_factor_reach_the_graph(examples):
    rig = Rig()
    launches = rig.launches()
    for at, batch in enumerate(batches(examples, PROOFS + 4)):
        rig.update()
        factor = 2.0 ** (at - 3)
        expected, found = (rig.gradient(way, batch, factor) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert rig.replay.replayed == 3


def test_gradients_of_several_micro_batches_add_up(examples):
    rig = Rig()
    given = batches(examples, PROOFS + 3)
    for batch in given[: 1 + PROOFS]:
        rig.update()
        rig.gradient(rig.replay, batch)
    alone = [rig.gradient(rig.launches(), batch)[1] for batch in given]
    rig.trained.zero()
    for batch in given:
        rig.replay(batch, 0.25)
    assert rig.replay.replayed == len(given)
    torch.testing.assert_close(rig.trained.gradients, torch.stack(alone).sum(0))


def test_a_proof_counts_once_for_the_same_parameters(examples):
    rig = Rig()
    given = batches(examples, 6)
    for batch in given:  # micro batches of one step: nothing is updated in between
        rig.gradient(rig.replay, batch)
    assert rig.replay.replayed == 0
    rig.update()
    for batch in given[:2]:
        rig.gradient(rig.replay, batch)
    assert rig.replay.replayed == 1


def test_a_parameter_kept_from_the_capture_is_found_out(examples):
    rig = Rig()
    given = batches(examples, PROOFS + 1)
    for batch in given[:PROOFS]:
        rig.gradient(rig.replay, batch)
    (shape,) = rig.replay._shapes.values()
    kept, graph = rig.trained.values.clone(), shape.graph

    def stale():
        now = rig.trained.values.clone()
        rig.trained.values.copy_(kept)
        graph()
        rig.trained.values.copy_(now)

    shape.graph = stale
    rig.update()
    rig.gradient(rig.replay, given[PROOFS])
    assert len(rig.said) == 1
    assert "a graph's loss is off by" in rig.said[0]


def test_a_number_kept_from_the_capture_is_found_out_on_the_next_batch(examples):
    host = {"weight": 1.0}
    rig = Rig(loss=lambda batch: static_sft(rig.fused, batch) * host["weight"])
    launches = rig.launches()
    for at, batch in enumerate(batches(examples, PROOFS + 3)):
        rig.update()
        host["weight"] = 1.0 if at < PROOFS else 1.1 + at
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert len(rig.said) == 1
    assert rig.said[0].startswith("no CUDA graphs from here on (a graph's loss is off by 6.8e-01, the gradient of ")
    assert (rig.capture.captures, rig.replay.replayed) == (1, 0)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_any_tensor_that_is_not_filled_anew_is_found_out(field, examples):
    rig = Rig()
    given = batches(examples, PROOFS + 1)
    for batch in given[:PROOFS]:
        rig.gradient(rig.replay, batch)
    (shape,) = rig.replay._shapes.values()
    assert set(shape.batch.views._fields) == FIELDS
    tensor, graph = getattr(shape.batch.views, field), shape.graph
    stale = tensor.clone()
    shape.graph = lambda: (tensor.copy_(stale), graph())
    rig.update()
    rig.gradient(rig.replay, given[PROOFS], factor=0.3)
    assert len(rig.said) == 1, f"a stale {field} was believed"


def trained_until_replayed(rig: Rig, examples, count: int = 1) -> None:
    """Steps until `count` micro batches of one shape were replayed."""
    for batch in batches(examples, 1 + PROOFS + count):
        rig.update()
        rig.gradient(rig.replay, batch)


def test_a_buffer_that_has_moved_makes_all_graphs_begin_again(examples):
    rig = Rig()
    launches = rig.launches()
    trained_until_replayed(rig, examples)
    assert (rig.capture.captures, rig.replay.replayed) == (1, 1)
    larger = packed(examples([120] * 8, seed=9), range(8))
    rig.gradient(rig.plain, larger)  # the buffers of all layers grow
    for batch in batches(examples, PROOFS + 3):
        rig.update()
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert (rig.capture.captures, rig.replay.replayed) == (2, 3)
    assert rig.said == []


def test_buffers_lost_to_an_error_make_all_graphs_begin_again(examples, monkeypatch):
    """Memory that runs out while evaluating: the arena of that forward is gone, and with it what was captured."""
    rig = Rig()
    trained_until_replayed(rig, examples)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(decoder, "block_forward", fails)
        with pytest.raises(torch.OutOfMemoryError):
            rig.plain(batches(examples, 1)[0], 1.0)
    trained_until_replayed(rig, examples)
    assert (rig.capture.captures, rig.replay.replayed) == (2, 2)


def fails(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_runs_out_in_a_capture_ends_the_graphs_and_not_the_run(examples, monkeypatch):
    rig = Rig()
    launches = rig.launches()
    monkeypatch.setattr(rig.capture, "capture", fails)
    for batch in batches(examples, 3):
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert len(rig.said) == 1
    assert "a micro batch cannot be captured: CUDA out of memory" in rig.said[0]


def test_memory_that_runs_out_in_a_launch_is_the_loops_to_handle(examples, monkeypatch):
    rig = Rig()
    first, second = batches(examples, 2)
    rig.gradient(rig.replay, first)
    monkeypatch.setattr(rig, "loss", fails)
    with pytest.raises(torch.OutOfMemoryError):
        rig.gradient(rig.replay, second)
    assert rig.replay.given_up is None


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


def test_shapes_beyond_the_most_are_launched(examples, monkeypatch):
    monkeypatch.setattr(replay, "MOST_GRAPHS", 1)
    rig = Rig()
    trained_until_replayed(rig, examples)
    launches = rig.launches()
    for seed in range(4):
        other = packed(examples([30, 40], seed=seed), range(2))
        rig.update()
        expected, found = (rig.gradient(way, other) for way in (launches, rig.replay))
        assert torch.equal(found[1], expected[1])
    assert rig.capture.captures == 1
    assert rig.replay.describe() == "CUDA graphs: 1 of 8 micro batches were replayed"


def test_waiting_inside_ends_the_graphs_and_not_the_run(examples):
    rig = Rig(loss=lambda batch: static_sft(rig.fused, batch) * (1.0 if batch.targets.sum().item() else 0.0))
    launches = rig.launches()
    for batch in batches(examples, 4):
        expected, found = (rig.gradient(way, batch) for way in (launches, rig.replay))
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert rig.said == [
        "no CUDA graphs from here on (a micro batch cannot be captured: called a synchronizing operation: "
        "_local_scalar_dense); the run goes on without them"
    ]
    assert rig.capture.captures == 0
    assert rig.replay.replayed == 0
