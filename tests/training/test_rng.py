"""Randomness is a pure function of (seed, step, micro batch), and leaves no trace outside."""

from __future__ import annotations

import itertools

import torch

from topcoat.training.rng import private_randomness, seed_micro_batch


def drawn(seed: int, step: int, micro: int) -> tuple[float, ...]:
    seed_micro_batch(seed, step, micro)
    return tuple(torch.rand(4).tolist())


def test_the_same_place_draws_the_same_numbers_and_every_other_place_others():
    with private_randomness():
        places = list(itertools.product((1, 2, 11), (0, 1, 2, 12), (0, 1, 2)))  # 1/12/0 and 11/2/0 are two places
        first = {place: drawn(*place) for place in places}
        again = {place: drawn(*place) for place in reversed(places)}
    assert first == again
    assert len(set(first.values())) == len(places)


def test_outside_the_generator_is_as_it_was_found():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with private_randomness():
        drawn(1, 2, 3)
    assert torch.equal(torch.rand(3), expected)
