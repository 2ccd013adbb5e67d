"""The arithmetic of the experiments, their protocols, the page, and one of them run on a tiny model."""

from __future__ import annotations

import json
import math
import random
import statistics
import xml.etree.ElementTree as ET

import pytest
import torch
from bench.papers import page as pages
from bench.papers import run
from bench.papers.experiments import EXPERIMENTS
from bench.papers.intervals import below, mean_loss, not_above, over_hits, over_rows, over_seeds, within
from bench.papers.lab import Lab, digest_of
from bench.papers.learning_rate import gap_growth
from bench.papers.protocol import Chart, Outcome, Table
from bench.papers.simulated import LEVELS, simulate
from bench.papers.starts import loftq, qpissa
from bench.papers.sweeps import Sweep, factor_grid

from topcoat.recipe.load import recipe_from_dict_with_notes


def test_an_interval_over_seeds_is_students():
    found = over_seeds([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    reach = 4.303 * 1.0 / math.sqrt(3)  # two degrees of freedom, deviation 1
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - reach, 2.0 + reach))
    assert found.holds_zero
    assert "not distinguishable" in found.say()
    alone = over_seeds([1.0], [3.0])
    assert alone.mean == -2.0
    assert alone.holds_zero


def test_the_interval_over_rows_covers_the_true_difference_about_19_times_in_20():
    hits = 0
    for trial in range(100):
        draw = random.Random(trial)
        theirs = [(draw.gauss(30, 8), 10) for _ in range(60)]
        ours = [(loss + draw.gauss(1.0, 2.0), n) for loss, n in theirs]  # 0.1 a token
        found = over_rows(ours, theirs, draws=400, seed=trial)
        assert found.mean == pytest.approx(mean_loss(ours) - mean_loss(theirs))
        hits += found.low <= 0.1 <= found.high
    assert 85 <= hits <= 100


def test_rows_that_differ_are_not_compared():
    with pytest.raises(ValueError, match="different rows"):
        over_rows([(1.0, 3)], [(1.0, 4)])


def test_hits_are_compared_question_by_question():
    found = over_hits([True, True, False, True], [False, True, False, False])
    assert found.mean == 0.5
    assert over_hits([True] * 50, [False] * 50).low == 1.0


def interval(low, high):
    return over_seeds([low, (low + high) / 2, high], [0.0] * 3)


def test_an_order_is_reached_only_where_the_interval_leaves_zero_out():
    assert below("", interval(-1.01, -0.99)).verdict == "reached"
    assert below("", interval(-1.01, -0.99), interval(-1.0, 0.9)).verdict == "not distinguishable"
    assert below("", interval(-1.01, -0.99), interval(0.99, 1.01)).verdict == "missed"
    assert not below("", interval(-1.0, 0.9)).passed


def test_not_worse_is_reached_unless_it_is_worse_beyond_the_interval():
    assert not_above("", interval(-1.0, 1.1)).verdict == "reached"
    assert not_above("", interval(0.99, 1.01)).verdict == "missed"
    assert not_above("", over_seeds([1.0], [2.0])).verdict == "not distinguishable"  # one seed has no interval


def test_a_value_that_is_no_number_reaches_nothing():
    assert within("", [0.5, 1.0], 0, 1).verdict == "reached"
    assert within("", [0.5, math.nan], 0, 1).verdict == "missed"
    assert within("", [], 0, 1).verdict == "missed"


def arms(losses):
    return [{"loss": loss} for loss in losses]


def test_the_optimum_of_a_parabola_in_log_rate_is_found():
    rates = factor_grid(1e-4, 6)
    assert rates[:3] == (1e-4, 2e-4, 4e-4)
    sweep = Sweep(rates, arms([(math.log(rate / 7e-4)) ** 2 for rate in rates]))
    assert sweep.best == 8e-4
    assert sweep.optimum == pytest.approx(7e-4, rel=1e-6)
    assert sweep.is_inside


def test_a_diverged_run_is_never_the_best_and_the_end_of_a_grid_is_told():
    sweep = Sweep((1e-3, 2e-3, 4e-3), arms([2.0, 1.0, math.nan]))
    assert (sweep.best, sweep.optimum, sweep.loss) == (2e-3, 2e-3, 1.0)
    assert len(sweep.points()) == 2
    assert "grid's end" in Sweep((1e-3, 2e-3), arms([2.0, 1.0])).say()


def test_the_gap_that_shrinks_with_the_batch_is_seen():
    def arm(loss):
        return {"losses": [(loss * 10 + noise, 10) for noise in (-1.0, 0.0, 2.0, 1.0)]}

    shrunk = gap_growth((arm(2.2), arm(2.0)), (arm(2.1), arm(2.0)))  # 0.2 -> 0.1
    assert shrunk.mean == pytest.approx(0.1)
    assert not_above("", shrunk).verdict == "missed"
    grown = gap_growth((arm(2.1), arm(2.0)), (arm(2.2), arm(2.0)))
    assert not_above("", grown).passed


@pytest.mark.parametrize(("name", "rmse"), [("e2m1", 0.10568), ("e3m0", 0.18812), ("int4-symmetric", 0.10768)])
def test_simulated_formats_err_on_normal_numbers_as_they_were_measured_to(name, rmse):
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    error = (simulate(name, weight) - weight).square().mean().sqrt()
    assert float(error) == pytest.approx(rmse, rel=0.01)
    assert len(LEVELS[name]) == 15  # two zeros, or a code without a use
    assert torch.equal(simulate(name, simulate(name, weight)), simulate(name, weight))


def test_loftq_comes_nearer_with_every_turn_and_qpissa_keeps_a_planted_rank():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(256, 256, generator=draw)
    planted = noise + 4 * torch.randn(256, 8, generator=draw) @ torch.randn(8, 256, generator=draw)

    def back(weight):
        return simulate("int4-symmetric", weight)

    def error(W, near):
        return float((W - near).norm() / (W - back(W)).norm())

    turns = [error(noise, near) for near in loftq(noise, back, 16, 3)]
    assert 1 > turns[0] > turns[1] > turns[2] > 0.5
    assert error(planted, qpissa(planted, back, 16)) < 0.4 < error(noise, qpissa(noise, back, 16)) < 1


class Protocol(Lab):
    """A laboratory that trains nothing: it checks what it is asked for, and answers with numbers."""

    wanted: list

    def do(self, kind, name, **spec):
        self.wanted.append((kind, spec))
        draw = random.Random(digest_of(kind, {**spec, "model": "some/base"}))
        losses = [(20 + draw.random(), 10) for _ in range(8)]
        row = {"losses": losses, "loss": mean_loss(losses), "before": 3.0 + draw.random(), "trained": 1000}
        row |= {"tokens_per_s": 1.0, "peak_bytes": 2**30, "entropy": 3.6, "mean_error": 0.1, "bits_per_weight": 4.5}
        row |= {"answers": [draw.random() < 0.5 for _ in range(8)], "exact_match": draw.random()}
        if kind == "arm":
            row["seed"] = spec["seed"]
            row["rounded"] = {to["name"]: losses for to in spec.get("round_to", [])}
            if spec["adapter"]["method"] == "adalora":
                row |= {"ranks": 16, "layers": [8, 8]}
        if kind == "starts":
            ratio = {"least": 0.8, "median": 0.9, "most": 0.95}
            row["ratios"] = {"loftq T=1": ratio, "qpissa": ratio}
        if kind != "arm":
            row["losses"] = dict.fromkeys(spec["texts"], losses)
        self.asked.append(({"job": digest_of(kind, {**spec, "model": "some/base"})}, row))
        return row

    def rows(self, name, part, count):
        return f"rows/{name}-{part}-{count}.jsonl"


@pytest.fixture
def protocol(tmp_path):
    lab = Protocol(tmp_path)
    lab.wanted = []
    return lab


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_a_protocol_is_a_recipe_and_every_outcome_can_be_shown(name, protocol, tmp_path):
    experiment = EXPERIMENTS[name]
    outcome = experiment.run(protocol)
    for kind, spec in protocol.wanted:
        if kind == "arm":
            values = {"model": {"path": "m", "quantization": spec["quantization"]}, "adapter": spec["adapter"]}
            values |= {"data": {"train": spec["train"], "validation": spec["validation"]}, "output": "run"}
            values |= {"train": spec["train_settings"], "seed": spec["seed"]}
            recipe_from_dict_with_notes(values, name, (), check_files=False)
    assert outcome.lines
    row = json.loads(json.dumps(run.results(experiment, outcome, protocol, f"python -m bench.papers.run {name}")))
    text = pages.page({name: row})
    for line in outcome.lines:
        assert line.found in text
        assert line.found
    pages.plot(experiment.paper_chart, Chart(**row["chart"]), tmp_path / "plot.svg")
    assert outcome.chart.title in "".join(ET.parse(tmp_path / "plot.svg").getroot().itertext())


def test_jobs_are_shared_between_experiments(protocol):
    EXPERIMENTS["learning_rate"].run(protocol)
    before = {job["job"] for job in protocol.done}
    EXPERIMENTS["ranks"].run(protocol)
    new = {job["job"] for job in protocol.done} - before
    assert len(new) == 6 + 4 * 2  # a sweep of rank 1, and two further seeds of four ranks


def stub(verdict="missed"):
    line = {
        "wanted": "this below that",
        "found": "+0.1 [+0.0, +0.2]",
        "verdict": verdict,
        "passed": verdict == "reached",
    }
    machine = {"cpu": "Some CPU"}
    environment = {"commit": "abc1234", "threads": 1, "machine": machine, "versions": {"torch": "2"}}
    outcome = Outcome([], Table(["a", "b"], [["x", 1.5], ["y", None]]), Chart("bars", bars={"x": 1.0}))
    return {
        "name": "formats",
        "quick": False,
        "passed": verdict == "reached",
        "lines": [line],
        "table": outcome.table.as_json(),
        "chart": outcome.chart.as_json(),
        "figures": {"ends": ["full"], "gap": {"8": 0.25}},
        "seeds": [0, 1],
        "when": "2026-01-02T03:04:05",
        "command": "python -m bench.papers.run formats",
        "seconds": 61.0,
        "cpu_s": 59.0,
        "busy_cores": 0.5,
        "environment": environment,
    }


def test_the_page_tells_misses_and_what_has_not_been_run():
    text = pages.page({"formats": stub()})
    assert "| this below that | +0.1 [+0.0, +0.2] | **missed** |" in text
    assert "| x | 1.5 |" in text
    assert "| y |  |" in text
    assert "- gap: 8 0.25" in text
    assert "commit abc1234: seeds 0, 1; " in text
    assert "| [Number formats by perplexity](#number-formats-by-perplexity) | 0 | 1 | 0 |" in text
    for name in EXPERIMENTS:
        missing = f"`python -m bench.papers.run {name}` runs it"
        assert (missing in text) == (name != "formats")


def test_quick_results_never_reach_the_page(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "formats.json").write_text(json.dumps({**stub(), "quick": True}))
    assert pages.read(results) == {}
    (results / "formats.json").write_text(json.dumps(stub()))
    pages.main(["--results", str(results), "--docs", str(tmp_path)])
    first = (tmp_path / "images" / "papers-formats.svg").read_bytes()
    pages.main(["--results", str(results), "--docs", str(tmp_path)])
    assert (tmp_path / "images" / "papers-formats.svg").read_bytes() == first
    assert "images/papers-formats.svg" in (tmp_path / "papers.md").read_text()


def test_an_unknown_name_is_told_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        run.arguments(["formatz"])
    assert "no experiment formatz; there are learning_rate, formats" in capsys.readouterr().err


def quick(name, cache, capsys):
    run.main([name, "--quick", "--cache", str(cache)])
    first = capsys.readouterr().out
    found = json.loads((cache / "papers-quick" / "results" / f"{name}.json").read_text())
    return found, first


def test_number_formats_run_on_a_tiny_model_and_go_on_where_they_were(tmp_path, capsys, shared_data):
    found, said = quick("formats", tmp_path, capsys)
    assert found["quick"]
    assert not found["passed"]
    assert [job["name"] for job in found["jobs"]][:2] == ["bf16", "nf4"]
    assert "  nf4: bits_per_weight 4.5" in said
    error = {row[0]: row[-1] for row in found["table"]["rows"]}
    assert 0 == error["bf16"] < error["nf4"] < error["e2m1"] < error["e3m0"]
    assert statistics.fmean([error["nf4"]]) == pytest.approx(0.092, abs=0.002)
    again, said = quick("formats", tmp_path, capsys)
    assert "bits_per_weight" not in said  # nothing was measured anew
    assert again["table"] == found["table"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "formats"])
def test_every_experiment_runs_on_a_tiny_model(name, tmp_path, capsys, shared_data):
    found, _ = quick(name, tmp_path, capsys)
    assert found["jobs"]
    assert all(line["found"] for line in found["lines"])
