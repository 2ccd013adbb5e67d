"""Ratios and merging: arithmetic on rows, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from bench.results import finish, merge, read, speed_ratio, tokens_per_s, write
from bench_rows import RUN, row

RUN_FACTS = {"environment": {"threads": 2}, "ceiling": {"before": 10.0, "after": 12.0}}


def test_the_median_leaves_the_warm_up_out():
    assert tokens_per_s(row("trl", [10.0, 5.0, 4.0])) == 200.0


def test_a_ratio_is_taken_within_each_round():
    ours, theirs = row("topcoat-none", [1.0, 4.0, 1.0]), row("trl", [5.0, 20.0, 6.0])  # the second round was disturbed
    assert speed_ratio(ours, theirs) == pytest.approx(5.0)


def test_the_step_of_the_sweep_counts_where_there_is_no_other_or_where_a_peer_was_faster_in_it():
    turns = row("topcoat-none", [0.5, 1.0, 1.0], first_round=0)
    assert tokens_per_s(turns) == 1000
    assert tokens_per_s(row("trl", [5.0], first_round=0)) == 200
    assert speed_ratio(turns, row("trl", [9.0, 5.0, 5.0], first_round=0)) == 5
    assert tokens_per_s(row("trl", [4.0, 5.0, 5.0], first_round=0)) == 250
    assert speed_ratio(turns, row("trl", [4.0, 5.0, 5.0], first_round=0)) == pytest.approx(4)


def test_without_a_common_round_it_is_the_ratio_of_medians():
    assert speed_ratio(row("topcoat-none", [1.0], first_round=7), row("trl", [3.0])) == pytest.approx(3.0)


def results(*rows):
    return finish({"suite": "cpu", "runs": {RUN: RUN_FACTS}, "rows": list(rows)})


def test_ours_is_compared_with_the_best_peer_of_those_named():
    found = results(
        row("topcoat-none", [1.0], 40),
        row("trl-packed", [5.0], 100),
        row("trl-packed-ckpt", [6.0], 50),
        row("peft-bf16-packed", [4.0], 80),  # faster, but 135m-alpaca compares with TRL
    )
    ours = found["rows"][0]
    assert (ours["best_peer"], ours["speed_ratio"], ours["memory_ratio"]) == ("trl-packed", 5.0, 0.4)
    assert ours["versus"]["peft-bf16-packed"] == {"speed_ratio": 4.0, "memory_ratio": 0.5}  # told all the same
    assert "speed_ratio" not in found["rows"][1]


def test_a_peer_that_a_gate_stopped_is_no_peer():
    found = results(row("topcoat-none", [1.0]), row("trl-packed", [2.0], passed=False), row("trl", [8.0]))
    assert found["rows"][0]["best_peer"] == "trl"


def test_the_share_of_the_ceiling_takes_the_higher_of_both_calibrations():
    assert results(row("trl", [1.0]))["rows"][0]["share_of_ceiling"] == pytest.approx(0.5)  # 6 of 12 GFLOP/s


def test_rows_of_an_older_run_keep_its_ceiling_and_a_run_without_rows_is_forgotten():
    older = {**row("trl", [1.0]), "run": "2025"}
    facts = {"environment": {"threads": 4}, "ceiling": {"before": 24.0}}
    runs = {"2025": facts, RUN: RUN_FACTS, "2024": facts}
    found = finish({"suite": "cpu", "runs": runs, "rows": [older, row("topcoat-none", [1.0])]})
    assert [r["share_of_ceiling"] for r in found["rows"]] == [pytest.approx(0.25), pytest.approx(0.5)]
    assert list(found["runs"]) == ["2025", RUN]
    assert found["ceiling"] == RUN_FACTS["ceiling"]  # the newest


def test_qlora_is_held_against_lora_on_the_same_rows():
    found = results(row("topcoat-none", [4.0]), row("topcoat-none", [5.0], workload="135m-alpaca-nf4"))
    assert found["qlora_over_lora"] == {"topcoat-none": pytest.approx(0.8)}


def test_a_new_row_takes_the_place_of_the_old_and_leaves_the_others(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    stored = read(path, "cpu")
    stored["runs"][RUN] = RUN_FACTS
    for new in (row("trl", [9.0]), row("topcoat-none", [1.0]), row("trl", [3.0])):
        merge(stored, new)
        write(path, stored)  # after every row: an interruption loses the one in hand
    again = json.loads(path.read_text())
    assert [(r["contender"], r["tokens_per_s"]) for r in again["rows"]] == [
        ("topcoat-none", 1000.0),
        ("trl", pytest.approx(333.3, rel=1e-3)),
    ]
    assert again["rows"][0]["speed_ratio"] == pytest.approx(3.0)


def test_a_contender_that_failed_is_kept_and_compared_with_nothing(tmp_path):
    stored = read(tmp_path / "none.json", "cpu")
    stored["runs"][RUN] = RUN_FACTS
    failed = {"workload": "135m-alpaca", "contender": "trl", "is_ours": False, "run": RUN, "steps": []}
    merge(stored, {**failed, "failed": "no room"})
    merge(stored, row("topcoat-none", [1.0]))
    write(tmp_path / "cpu.json", stored)
    assert stored["rows"][1]["speed_ratio"] is None
