"""Memory that runs out: the same step in smaller pieces, with the same gradients, kept for a resume."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from topcoat.errors import Refused
from topcoat.training.halving import is_out_of_memory
from topcoat.training.loop import Progress, probe, train
from topcoat.training.objectives.sft import sft

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError(CPU_SAYS),
    MemoryError(),
]


class Full:
    """A loss in a memory of so many positions: half of a batch that is too large computes, and leaves its gradient."""

    def __init__(self, positions: int, error: Exception = ERRORS[0], after: int = 0) -> None:
        self.positions, self.error, self.after = positions, error, after
        self.sizes: list[int] = []
        self.gradients: list[list[torch.Tensor]] = []

    def __call__(self, model, batch):
        self.sizes.append(batch.input_ids.numel())
        loss = sft(model, batch)
        if self.sizes[-1] > self.positions and len(self.sizes) > self.after:
            loss.backward()  # what a backward that fails half way has added up
            raise self.error
        return loss


def weights(made):
    return {name: p.detach().clone() for name, p in made.run.parameters.items()}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_the_gradients_of_a_halved_step_are_those_of_the_whole_one(loop, error, packing, monkeypatch):
    def first_gradients(made):
        found = {}
        real = made.run.optimizer.clip

        def clip(*arguments):
            found.update({name: p.grad.clone() for name, p in made.run.parameters.items()})
            return real(*arguments)

        monkeypatch.setattr(made.run.optimizer, "clip", clip)
        train(made.run)
        return found

    lengths = [60, 50, 64, 40, 55, 62, 33, 47]
    whole = loop(lengths=lengths, steps=1, batch_size=8, budget=512, packing=packing)
    expected = first_gradients(whole)
    full = Full(140, error, after=1)  # the probe passes, so that it is the step that fails
    halved = loop(lengths=lengths, steps=1, batch_size=8, budget=512, packing=packing, loss=full)
    found = first_gradients(halved)
    assert max(full.sizes) > 140
    assert len(full.sizes) > 3
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * max(1.0, float(gradient.abs().max())), name
    assert halved.losses() == pytest.approx(whole.losses(), rel=1e-6)
    last = halved.rows[-1]
    assert (last["tokens"], last["target_tokens"]) == (whole.rows[-1]["tokens"], whole.rows[-1]["target_tokens"])


def test_the_worst_micro_batch_is_halved_before_the_first_step_until_it_fits(loop):
    said: list[str] = []
    full = Full(70)
    made = loop(lengths=[30] * 8, steps=3, batch_size=8, budget=256, loss=full)
    made.run.say = said.append
    train(made.run)
    assert full.sizes[:3] == [256, 128, 64]
    assert max(full.sizes[3:]) <= 64
    assert len(made.losses()) == 3
    assert made.run.progress.micro_batch_tokens == 64
    assert len(said) == 2
    assert "step 0: memory ran out (CUDA out of memory. Tried to allocate 20.00 MiB.)" in said[0]
    assert "micro batches of at most 128 tokens" in said[0]
    events = [row for row in made.rows if "out_of_memory" in row]
    assert [(row["step"], row["micro_batch_tokens"]) for row in events] == [(0, 128), (0, 64)]


def test_a_run_goes_on_from_the_step_that_failed_and_a_resumed_one_in_the_same_pieces(loop):
    rows = {"lengths": [30] * 8, "steps": 6, "batch_size": 8, "budget": 256}
    full = Full(128, after=3)  # the probe and two steps pass
    made = loop(**rows, loss=full)
    train(made.run)
    assert [row["step"] for row in made.rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in made.rows if "out_of_memory" in row] == [3]
    assert full.sizes == [256, 256, 256, 256, *[128] * 8]
    later = loop(**rows, progress=Progress(**(asdict(made.run.progress) | {"step": 4, "ended": None})))
    train(later.run)
    assert later.run.steps.budget == 128


def test_one_example_that_does_not_fit_is_said_with_what_would(loop):
    made = loop(lengths=[60, 9, 9, 9], budget=64, loss=Full(20))
    with pytest.raises(Refused) as caught:
        probe(made.run)
    text = str(caught.value)
    assert "one example of 64 tokens does not fit into memory by itself: CUDA out of memory." in text
    assert "where: data.max_length" in text
    assert "data.max_length: 32" in text
    assert "train.recompute: block" in text


def test_other_errors_pass_as_they_are(loop):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    made = loop(loss=Full(0, error))
    with pytest.raises(RuntimeError) as caught:
        train(made.run)
    assert caught.value is error


def test_what_the_cpu_allocator_of_torch_raises_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
