"""The pages on advice and on searching: commands that run and print what is shown, tables that are the code's."""

import json
import shlex
from pathlib import Path

import pytest

from topcoat.cli.main import run
from topcoat.demo.tickets import tickets
from topcoat.recipe.advice import load_advice
from topcoat.runs.tuning_space import SPACE

DOCS = Path(__file__).parents[2] / "docs" / "howto"
ADVISE, TUNE = ((DOCS / name).read_text(encoding="utf-8") for name in ("advise.md", "tune.md"))


def blocks() -> list[tuple[str, str]]:
    """(command, what the next block shows of its output, or nothing), of the page on advice."""
    found = []
    for part in ADVISE.split("```console\n$ topcoat ")[1:]:
        command, _, rest = part.partition("\n```\n")
        shown = rest.split("```\n")[1] if rest.startswith("\n```\n") else ""
        if command != "advise":  # that one asks
            found.append((command, shown.strip()))
    return found


@pytest.mark.parametrize(("command", "shown"), blocks())
def test_every_command_runs_and_prints_what_is_shown(command, shown, tmp_path, monkeypatch, capsys):
    rows = tickets(train=120, held_out=30).train
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if "-o " not in command:
        (tmp_path / "recipe.yaml").write_text("model: smollm2-135m\ndata: tickets.jsonl\noutput: runs/x\n")
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command)) == 0
    assert shown in capsys.readouterr().out


def test_the_page_shows_what_is_printed():
    assert [bool(shown) for _, shown in blocks()] == [True, False, True]


def test_every_question_and_its_words_are_on_the_page():
    for name, question in load_advice().questions.items():
        row = next(line for line in ADVISE.splitlines() if line.startswith("| `--") and f"`--{name}`" in line)
        assert all(f"`{word}`" in row for word in question.choices), name


def test_every_setting_that_can_be_searched_is_on_the_page_with_its_range():
    rows = [line for line in TUNE.splitlines() if line.startswith("| `") and ".html" not in line]
    for row, (name, (_, span)) in zip(rows, SPACE.items(), strict=False):
        assert row == f"| `{name}` | {str(span).replace('/', ', ')} |"
