"""The grid of plans: its points are recipes, rows are kept, errors are counted, and the page is made from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench.plan import run
from bench.plan.fit import fitted
from bench.plan.models import MODELS, _pairs
from bench.plan.page import page, plot
from bench.plan.points import COARSE, GRID, STEPS, Point

from topcoat.planning.shapes import find_shape
from topcoat.recipe.load import recipe_from_dict_with_notes


def test_the_grid_covers_what_it_says():
    assert len({point.name for point in GRID}) == len(GRID) >= 40
    assert all(point in GRID for point in COARSE)
    assert {point.method for point in GRID} >= {"lora", "full"}
    assert {point.recompute for point in GRID} == {"none", "mlp", "qkv", "block"}
    assert {point.stored for point in GRID} >= {None, "nf4", "int8"}
    assert {128, 8192} <= {point.length for point in GRID}
    assert all(name == "smollm2-135m" or find_shape(name) for name in MODELS.values())


@pytest.mark.parametrize("point", GRID, ids=lambda point: point.name)
def test_every_point_is_a_recipe(point):
    values = point.recipe("model", "rows.jsonl", "run")
    recipe, _ = recipe_from_dict_with_notes(values, "grid", (), check_files=False)
    assert recipe.train.max_steps == point.more.get("train", {}).get("max_steps", STEPS)


def test_a_row_is_measured_once_and_predicted_every_time(tmp_path, monkeypatch):
    measured = []

    def measure(recipe, output, log):
        output.mkdir(parents=True, exist_ok=True)
        measured.append(recipe)
        return {"measured_bytes": 1000, "started_bytes": 990}

    predictions = iter((900, 1100, 1100))
    monkeypatch.setattr(run, "prepared", lambda point, cache: (tmp_path / "r", tmp_path / "run", tmp_path / "log"))
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run, "predict", lambda recipe, log: {"predicted_bytes": next(predictions)})
    file = tmp_path / "cpu.json"
    for again in (False, False, True):
        run.grid([Point("135m", 128)], file, again=again, keep=False, cache=tmp_path)
    assert len(measured) == 2
    found = json.loads(file.read_text())
    assert found["median_error"] == found["worst_error"] == pytest.approx(0.1)
    assert found["rows"][0]["predicted_bytes"] == 1100


def test_what_would_fill_the_machine_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "prepared", lambda point, cache: (tmp_path / "r", tmp_path / "run", tmp_path / "log"))
    monkeypatch.setattr(run, "predict", lambda recipe, log: {"predicted_bytes": 2**40})
    run.grid([Point("135m", 128)], tmp_path / "cpu.json", again=False, keep=False, cache=tmp_path)
    assert "left out, it would take 1024.0 GiB" in capsys.readouterr().out


def test_the_page_and_the_plot_hold_every_row(tmp_path):
    rows = [
        {"name": "135m lora 512x1", "predicted_bytes": 2**30, "measured_bytes": 2**30, "error": 0.0},
        {"name": "135m full 512x2", "predicted_bytes": 4 * 2**30, "measured_bytes": 5 * 2**30, "error": -0.2},
    ]
    rows[0] |= {"predicted_step_s": [1.0, 1.4], "step_s": 1.0, "others_cores": 0.1}
    rows[1] |= {"predicted_step_s": [2.0, 3.0], "step_s": 9.0, "others_cores": 1.2}  # disturbed
    for row in rows:
        row["time_error"] = run.time_error(row)
    results = {"rows": rows, "machine": {"cpu": "a CPU", "cores": 2}, "versions": {"torch": "2"}, **run.summary(rows)}
    text = page({"cpu": results, "cpu-amx": results | {"said": "Earlier rows."}})
    assert text.index("## A processor without AMX") < text.index("## A processor with AMX\n\nEarlier rows.")
    assert "2 points, median error 10.0%, worst 20.0%" in text
    assert "| 135m lora 512x1 | 1.0 GiB | 1.0 GiB | +0.0% | 1.00 to 1.40 | 1.00 |" in text
    assert "| 135m full 512x2 | 4.0 GiB | 5.0 GiB | -20.0% | 2.00 to 3.00 |  |" in text
    assert "where nothing else on the machine disturbed it (1 rows)" in text
    assert "off by 20% in the median" in text
    plot(results, tmp_path / "plan.svg")
    first = (tmp_path / "plan.svg").read_text()
    plot(results, tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text() == first
    assert "measured peak, GiB" in first


def test_merges_are_of_two_tokens_each():
    tokens = [f"t{n}" for n in range(500)]
    first = next(iter(_pairs(tokens)))
    assert first == ("t499", "t300")


def test_the_fit_finds_factors_that_are_there_and_none_below_zero():
    draw = np.random.default_rng(0)
    floors, factors = draw.uniform(0.1, 1, (40, 4)), np.array([1.5, 0.0, 4.0, 0.3])
    np.testing.assert_allclose(fitted(floors, floors @ factors), factors, atol=1e-3)
    assert fitted(floors, -floors[:, 0]).tolist() == [0, 0, 0, 0]
