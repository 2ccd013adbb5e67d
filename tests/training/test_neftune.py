"""NEFTune: the size of the noise by the paper's formula, where it falls, and that both paths get the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from topcoat.data.batches import packed, padded
from topcoat.model.families import FAMILIES
from topcoat.model.fuse import fuse
from topcoat.training.neftune import noise_sizes, noisy_embeddings
from topcoat.training.objectives.hidden import spans
from topcoat.training.objectives.sft import sft
from topcoat.training.rng import seed_micro_batch

LENGTHS, ALPHA = [40, 7, 21], 5.0


def embedded(model, batch, alpha=None):
    """What the model's embedding returns for the batch (B * T, D)."""
    found = []
    module = model.get_submodule(FAMILIES[model.config.model_type].embedding)
    if alpha is None:
        return module(batch.input_ids).flatten(0, 1)
    with noisy_embeddings(model, spans(batch), alpha):
        found.append(module(batch.input_ids).flatten(0, 1))
    return found[0]


@pytest.mark.parametrize("collate", [packed, padded])
def test_noise_is_uniform_within_alpha_over_the_root_of_each_documents_own_length_times_the_width(
    ready, examples, collate
):
    model, _ = ready("llama")
    batch = collate(examples(LENGTHS), range(len(LENGTHS)))
    seed_micro_batch(1, 0, 0)
    noise = (embedded(model, batch, ALPHA) - embedded(model, batch)).detach()
    for (start, length), n in zip(spans(batch), LENGTHS, strict=False):
        assert length == n
        most, own = ALPHA / math.sqrt(n * 64), noise[start : start + n]
        assert float(own.abs().max()) <= most * (1 + 1e-4)
        assert float(own.abs().max()) > 0.9 * most  # hundreds of draws come near the border
        assert_close(float(own.std()), most / math.sqrt(3), rtol=0.1, atol=0)  # of a uniform distribution


def test_padding_gets_no_noise():
    sizes = noise_sizes([(0, 3), (8, 2)], 16, 4, 2.0)
    assert_close(sizes[[0, 1, 2]], torch.full((3,), 2 / math.sqrt(12)))
    assert_close(sizes[[8, 9]], torch.full((2,), 2 / math.sqrt(8)))
    assert not bool(sizes[[3, 4, 5, 6, 7, 10, 15]].any())


def test_the_hand_written_blocks_and_transformers_layers_get_the_same_noise(ready, examples):
    model, adapters = ready("llama")
    fused = fuse(model)
    batch = packed(examples(LENGTHS), range(len(LENGTHS)))
    found = []
    for path in (None, fused):
        seed_micro_batch(1, 2, 3)
        with noisy_embeddings(model, spans(batch), ALPHA):
            loss = sft(model, batch, path)
        found.append(torch.autograd.grad(loss, list(adapters.parameters().values())))
    clean = torch.autograd.grad(sft(model, batch), list(adapters.parameters().values()))
    for one, other, without in zip(*found, clean, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(one, without, rtol=1e-3, atol=1e-4)


def test_the_noise_follows_from_seed_step_and_micro_batch_alone(ready, examples):
    model, _ = ready("llama")
    batch = packed(examples(LENGTHS), range(len(LENGTHS)))

    def noisy(*place: int):
        torch.rand(5)  # whatever was drawn before
        seed_micro_batch(*place)
        return embedded(model, batch, ALPHA)

    assert torch.equal(noisy(1, 2, 0), noisy(1, 2, 0))
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert not torch.equal(noisy(1, 2, 0), noisy(*other))


def test_afterwards_the_embedding_is_as_it_was(ready, examples):
    model, _ = ready("gpt_neox")
    batch = packed(examples([9]), [0])
    before = embedded(model, batch)
    with pytest.raises(RuntimeError), noisy_embeddings(model, spans(batch), ALPHA):
        raise RuntimeError
    assert torch.equal(embedded(model, batch), before)
