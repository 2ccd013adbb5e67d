"""A CPU's time is a sum over parts, each never below its floor where the hand-written blocks compute."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from topcoat.planning.cpu_speed import PATHS, SPREAD, Parts, cpu_seconds, repeated

NOTHING = dict.fromkeys((field.name for field in fields(Parts)), 0.0)
RESULTS = Path(__file__).parents[2] / "bench" / "plan" / "results"


@pytest.mark.parametrize("factors", PATHS.values())
def test_every_part_has_a_factor(factors):
    assert set(factors) == set(NOTHING)
    assert all(factor >= 0 for factor in factors.values())


@pytest.mark.parametrize("tiles", [True, False])
def test_the_span_lies_around_the_sum(tiles):
    low, high = cpu_seconds(Parts(**NOTHING | {"linears": 2.0, "calls": 1.0}), 2, blocks=True, tiles=tiles)
    factors = PATHS[tiles, True, True]
    middle = 2 * factors["linears"] + factors["calls"]
    assert (low, high) == pytest.approx((middle * (1 - SPREAD), middle * (1 + SPREAD)))


def test_what_is_computed_again_takes_longer():
    assert repeated("block") == repeated("offload") > repeated("qkv") > repeated("mlp") == repeated("none") == 1


def test_the_published_grid_is_within_what_is_promised():
    found = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    assert found["points"] >= 40
    assert found["median_error"] <= 0.03
    assert found["worst_error"] <= 0.08
    assert found["worst_time_error"] <= 0.2
