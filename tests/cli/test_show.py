"""The end of a run as a person reads it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from topcoat.cli.show import comparison, next_steps, score_table, scores_line
from topcoat.runs.folder import write_json
from topcoat.runs.run import Result
from topcoat.runs.scoring import Scores


def printed(renderable: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def result(folder: Path, adapter: str = "adapter") -> Result:
    return Result(folder, folder / adapter, Scores(20.5, None), Scores(2.0, 0.5), 1.0, 8)


def test_what_can_be_pasted_is_quoted():
    said = printed(next_steps(result(Path("my runs/one"))))
    assert "topcoat chat 'my runs/one'" in said
    assert "topcoat merge 'my runs/one'" in said
    assert "/adapter off compares with the base" in said


def test_what_cannot_be_merged_is_not_told_to_be():
    said = printed(next_steps(replace(result(Path("run")), mergeable=False)))
    assert "topcoat chat run" in said
    assert "merge" not in said


def test_a_fully_trained_model_is_not_to_be_merged():
    said = printed(next_steps(result(Path("run"), "model")))
    assert "model    run/model" in said
    assert "topcoat chat run" in said
    assert "merge" not in said
    assert "/adapter off" not in said


def test_scores_that_were_not_measured_are_a_dash():
    said = printed(score_table(result(Path("run"))))
    assert "20.500" in said
    assert "50.0 %" in said
    assert " - " in said
    assert scores_line("before", Scores(None, None)) == "before: nothing to measure without validation rows"
    assert scores_line("after", Scores(math.exp(1), 0.25)) == "after: exact match 25.0 %, perplexity 2.718"


def test_without_held_out_rows_it_is_said_instead_of_a_table():
    nothing = Scores(None, None)
    said = printed(score_table(replace(result(Path("run")), base=nothing, tuned=nothing)))
    assert said.strip() == "no scores: no rows are held out (data.validation: 0.1 holds out a tenth)"


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "a\nb", ""])
def test_answers_are_printed_as_they_are(tmp_path, text):
    sample = {"prompt": "p", "reference": text, "base": text, "adapter": text}
    write_json(tmp_path / "results.json", {"samples": [sample] * 5})
    said = printed(comparison(tmp_path, most=2))
    assert said.count("│ p  ") == 2
    for line in text.split("\n"):
        assert line in said


def test_a_run_without_samples_has_no_table(tmp_path):
    write_json(tmp_path / "results.json", {"samples": []})
    assert printed(comparison(tmp_path, most=3)).strip() == ""
