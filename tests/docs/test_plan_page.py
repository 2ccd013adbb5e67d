"""The commands of the page on planning, run as they are written, print what it shows."""

import json
import shlex
from pathlib import Path

import pytest

from topcoat.cli.main import run
from topcoat.demo.tickets import tickets
from topcoat.model.tiny import save_tiny
from topcoat.planning import calibration

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "plan.md").read_text(encoding="utf-8")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with the recipe the page speaks of, as the current one."""
    rows = tickets(train=120, held_out=30).train
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    save_tiny(tmp_path / "model")
    recipe = {"model": {"path": "model"}, "data": {"train": "tickets.jsonl"}, "output": "runs/x"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(calibration, "measure", lambda bf16: calibration.Reached(1e12, 1e11, 1e10, 1e-6))
    monkeypatch.chdir(tmp_path)


def blocks() -> list[tuple[str, str]]:
    """(command, what the next block shows of its output, or nothing)."""
    found = []
    for part in PAGE.split("```console\n$ topcoat ")[1:]:
        command, _, rest = part.partition("\n```\n")
        shown = rest.split("```\n")[1] if rest.startswith("\n```\n") else ""
        found.append((command, shown.strip()))
    return found


@pytest.mark.parametrize(("command", "shown"), blocks())
def test_every_command_runs_and_prints_what_is_shown(command, shown, there, capsys):
    assert run(shlex.split(command)) in (0, 1)
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(shown.split()) in printed


def test_the_page_shows_two_outputs():
    assert [bool(shown) for _, shown in blocks()] == [False, True, False, True, False]
