"""What a kind of device cannot do is refused by a plan in the words of a run, all of it at once."""

import pytest

from topcoat.errors import TopcoatError
from topcoat.training.on_device import offload_problem, optimizer_problem, require_device
from topcoat.training.optimizers.sizes import DEVICES
from topcoat.training.settings import TrainSettings


def test_everything_that_does_not_run_there_is_said_at_once():
    asked = TrainSettings(optimizer="adamw_8bit", recompute="offload", cuda_graphs=True)
    with pytest.raises(TopcoatError) as caught:
        require_device(asked, "cpu")
    assert [(p.what, p.where, p.fix) for p in caught.value.problems] == [
        (
            "train.optimizer adamw_8bit runs on cuda, and this run is on cpu",
            "train.optimizer",
            "write optimizer: adamw, or paged_adamw to keep the moments on a disk",
        ),
        (
            "train.recompute is offload, which keeps activations in host memory, and this run computes on cpu, "
            "where they are already",
            "train.recompute",
            "write recompute: block, or auto",
        ),
        (
            "train.cuda_graphs: this run computes on cpu, and graphs are for CUDA GPUs",
            "train.cuda_graphs",
            "write train.cuda_graphs: false, or train on a GPU",
        ),
    ]
    require_device(asked, "cuda")


@pytest.mark.parametrize("optimizer", DEVICES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_optimizer_is_refused_exactly_where_it_does_not_run(optimizer, device):
    problem = optimizer_problem(optimizer, device)
    assert (problem is None) == (device in DEVICES[optimizer])
    assert problem is None or problem.fix


@pytest.mark.parametrize("recompute", ["auto", "none", "mlp", "qkv", "block"])
def test_only_offload_wants_a_gpu(recompute):
    assert offload_problem(recompute, "cpu") is None
