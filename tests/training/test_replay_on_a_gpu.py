"""Real CUDA graphs, where there is a GPU: what a tape of operators cannot show."""

import pytest
import torch
from replay_rig import Rig, batches

from topcoat.data.batches import packed
from topcoat.kernels import decoder
from topcoat.training.replay import GRADIENT_TOLERANCE, LOSS_TOLERANCE, PROOFS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def assert_alike(rig, batch, launches):
    """A step by graphs, and the same by launches."""
    rig.update()
    loss, gradient = rig.gradient(launches, batch)
    found, replayed = rig.gradient(rig.replay, batch)
    assert abs(found - loss) <= LOSS_TOLERANCE * abs(loss)
    assert float((replayed - gradient).norm()) <= GRADIENT_TOLERANCE * float(gradient.norm())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("policy", ["none", "block"])
def test_replays_give_what_launches_give(family, policy, examples):
    rig = Rig(family, policy, device="cuda")
    for batch in batches(examples, PROOFS + 5):
        assert_alike(rig, batch, rig.launches())
    assert rig.said == []
    assert rig.replay.replayed == 4


def test_four_bit_weights_are_rebuilt_inside_the_graph(examples, tmp_path):
    rig = Rig(device="cuda", folder=tmp_path / "model")
    for batch in batches(examples, PROOFS + 5):
        assert_alike(rig, batch, rig.launches())
    assert rig.said == []
    assert rig.replay.replayed == 4


def test_graphs_of_two_shapes_outlive_evaluation_and_begin_again_when_buffers_move(examples):
    rig = Rig(device="cuda")
    small = [packed(examples([30 + seed, 40], seed=seed), range(2)) for seed in range(12)]
    large = batches(examples, 12)
    for pair in zip(small, large, strict=True):
        for batch in pair:
            assert_alike(rig, batch, rig.launches())
        with torch.no_grad():
            rig.plain(pair[1], 1.0)  # validation on the default stream
        torch.cuda.empty_cache()
        torch.full((1 << 24,), torch.nan, device="cuda")  # whoever lost its memory reads this
    assert rig.replay.replayed == 2 * (12 - 1 - PROOFS)
    larger = packed(examples([120] * 8, seed=9), range(8))
    rig.gradient(rig.plain, larger)
    for pair in zip(small, large, strict=True):
        for batch in pair:
            assert_alike(rig, batch, rig.launches())
        torch.cuda.empty_cache()
        torch.full((1 << 24,), torch.nan, device="cuda")
    assert rig.said == []
    assert rig.replay.replayed > 2 * (12 - 1 - PROOFS)


def test_memory_that_runs_out_while_evaluating_leaves_no_graph_with_old_addresses(examples, monkeypatch):
    rig = Rig(device="cuda")
    for batch in batches(examples, PROOFS + 2):
        assert_alike(rig, batch, rig.launches())
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(decoder, "block_forward", lambda *arguments: torch.empty(1 << 60, device="cuda"))
        with pytest.raises(torch.OutOfMemoryError):
            rig.plain(batches(examples, 1)[0], 1.0)
    torch.cuda.empty_cache()
    torch.full((1 << 24,), torch.nan, device="cuda")
    for batch in batches(examples, PROOFS + 2):
        assert_alike(rig, batch, rig.launches())
    assert rig.said == []


def test_waiting_for_the_device_ends_the_graphs_and_not_the_run(examples):
    rig = Rig(device="cuda", loss=lambda batch: batch.factor.item() * next(iter(rig.trained.parameters.values())).sum())
    for batch in batches(examples, PROOFS + 2):
        rig.update()
        assert rig.gradient(rig.replay, batch)[1].any()
    assert len(rig.said) == 1
    assert "called a synchronizing CUDA operation" in rig.said[0]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()  # which fails once a capture was broken off
