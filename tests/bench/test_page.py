"""The page from a small file of results: every row stands in it, and a miss is called one."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from bench.page import main, page
from bench.results import finish
from bench_rows import RUN, row


def small(*rows):
    for one in rows:
        for step in one["steps"]:
            step["other_load"] = 0.02
    machine = {"cpu": "Some CPU", "cpu_features": ["amx_bf16"]}
    environment = {"when": RUN, "threads": 2, "machine": machine, "peers": {"torch": "2.13.0"}, "steal_s": 1.5}
    facts = {"environment": environment, "ceiling": {"before": 100.0, "after": 110.0}}
    return finish({"suite": "cpu", "runs": {RUN: facts}, "rows": list(rows)})


def test_hits_and_misses_are_told():
    reached = page([small(row("topcoat-none", [1.0], 40), row("trl-packed", [5.5], 100))])
    assert "| 135m-alpaca: 5 times the speed, 0.5 of the memory | trl-packed | 5.50 times, 0.40 |" in reached
    assert "| reached |" in reached
    missed = page([small(row("topcoat-none", [1.0], 60), row("trl-packed", [5.5], 100))])
    assert "5.50 times, 0.60 | topcoat-none | **missed** |" in missed


def test_the_policy_that_reaches_both_figures_stands_for_ours():
    rows = [row("topcoat-none", [1.0], 60), row("topcoat-block", [1.1], 30), row("trl-packed", [6.0], 100)]
    assert "| topcoat-block | reached |" in page([small(*rows)])


def test_every_row_is_listed_also_what_was_stopped_or_failed():
    rows = [row("topcoat-none", [1.0]), row("trl-packed", [5.0]), row("trl", [4.0], passed=False)]
    result = small(*rows)
    failed = {"workload": "135m-alpaca", "contender": "peft-bf16", "is_ours": False, "run": RUN, "steps": []}
    result["rows"].append({**failed, "failed": "exit status 1:\nMemoryError | <none left>"})
    text = page([result])
    assert "| trl | 250 | | 100 B | | 1% | its loss is off |" in " ".join(text.split("  "))
    assert "did not run: exit status 1: MemoryError / &lt;none left>" in text
    assert "| trl-packed | 200 |" in text
    assert "2 threads. 2026-01-02: 135m-alpaca." in text
    assert "100 and 110 GFLOP/s" in text


def test_without_results_the_page_says_so(tmp_path):
    main(["--results", str(tmp_path), "--docs", str(tmp_path)])
    assert "Nothing has been measured yet" in (tmp_path / "benchmarks.md").read_text()


def test_page_and_plot_are_the_same_for_the_same_results(tmp_path):
    result = small(row("topcoat-none", [1.0], 2**30), row("trl-packed", [5.0], 2**31))
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    pictures = []
    for name in ("one", "two"):
        main(["--results", str(tmp_path), "--docs", str(tmp_path / name)])
        pictures.append((tmp_path / name / "images" / "benchmarks-cpu.svg").read_bytes())
        assert "images/benchmarks-cpu.svg" in (tmp_path / name / "benchmarks.md").read_text()
    assert pictures[0] == pictures[1]
    assert "topcoat-none" in "".join(ET.fromstring(pictures[0]).itertext())


def test_equal_memory_is_a_table_of_its_own(tmp_path):
    for name, extra in (("gpu", {}), ("gpu-24gib", {"memory_gib": 24.0})):
        result = small(row("topcoat-none", [1.0], 2**30), row("unsloth-default", [5.0], 2**31))
        for one in result["rows"]:
            one["workload"] = "tiny"
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"suite": "gpu"} | extra))
    main(["--results", str(tmp_path), "--docs", str(tmp_path)])
    text = (tmp_path / "benchmarks.md").read_text()
    plain, capped = text.index("## On a GPU\n"), text.index("## On a GPU, in 24 GiB of memory each\n")
    assert plain < capped
    for picture in ("benchmarks-gpu.svg", "benchmarks-gpu-24gib.svg"):
        assert f"images/{picture}" in text
        assert (tmp_path / "images" / picture).exists()


def test_a_profile_is_shown_by_its_parts():
    result = small(row("topcoat-none", [1.0], 40), row("trl-packed", [5.5], 100))
    facts = {"says": "one model", "step_s": 2.0, "commit": "abc", "ceiling_gflops": 1900, "floors": {"products": 1.25}}
    text = page([result], {**facts, "parts": {"products": 1.5, "the rest": 0.5}})
    assert "### Where the time goes" in text
    assert "one model: 2.00 seconds a step (commit abc)." in text
    assert "| products | 1.500 | 75% | 1.250 |" in text
    assert "| the rest | 0.500 | 25% |  |" in text
    assert "| together | 2.000 | | 1.250 |" in text
    assert "Where the time goes" not in page([result])


def test_a_long_run_is_shown_by_its_ends():
    result = small(row("topcoat-none", [1.0], 40), row("trl-packed", [5.5], 100))
    run = {"rows": 1000, "steps": 10000, "seconds_per_token": [1.5e-4, 9e-5, 1.2e-4], "last_over_first": 0.8}
    text = page([result], None, [run, run | {"rows": 100_000, "over_first_run": 1.04}])
    assert "| 1,000 | 10,000 | 150 | 120 | 0.80 |  |" in text
    assert "| 100,000 | 10,000 | 150 | 120 | 0.80 | 1.04 |" in text


def test_figures_for_a_gpu_are_told_peer_by_peer():
    name = "8b-nf4-4096"
    rows = [row("topcoat-none", [1.0]), row("topcoat-offload", [1.5], 5 * 2**30), row("trl-packed", [1.9])]
    rows += [row("unsloth-default", [1.4]), row("unsloth-no-ckpt", [1.36])]
    for one in rows:
        one["workload"] = name
    result = small(*rows) | {"suite": "gpu"}
    text = page([finish(result)])
    wanted = f"| {name}: 1.35 times the speed of unsloth | unsloth-no-ckpt | 1.36 times | topcoat-none | reached |"
    assert wanted in text
    assert f"| {name}: 2 times the speed of trl | trl-packed | 1.90 times | topcoat-none | **missed** |" in text
    assert f"| {name}: at most 6.0 GiB | | 5.0 GiB | topcoat-offload | reached |" in text
    assert "of peft" not in text
