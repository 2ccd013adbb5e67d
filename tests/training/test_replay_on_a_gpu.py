"""Real CUDA graphs, where there is a GPU: what a tape of operators cannot show."""

import pytest
import torch
from replay_rig import Rig, batches

from topcoat.training.replay import GRADIENT_TOLERANCE, LOSS_TOLERANCE, PROOFS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("policy", ["none", "block"])
def test_replays_give_what_launches_give(family, policy, examples):
    rig = Rig(family, policy, device="cuda")
    launches = rig.launches()
    for batch in batches(examples, PROOFS + 5):
        loss, gradient = rig.gradient(launches, batch)
        found, replayed = rig.gradient(rig.replay, batch)
        assert abs(found - loss) <= LOSS_TOLERANCE * abs(loss)
        assert float((replayed - gradient).norm()) <= GRADIENT_TOLERANCE * float(gradient.norm())
    assert rig.said == []
    assert rig.replay.replayed == 4


def test_waiting_for_the_device_ends_the_graphs_and_not_the_run(examples):
    rig = Rig(device="cuda", loss=lambda batch: batch.factor.item() * next(iter(rig.trained.parameters.values())).sum())
    for batch in batches(examples, PROOFS + 2):
        assert rig.gradient(rig.replay, batch)[1].any()
    assert len(rig.said) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
