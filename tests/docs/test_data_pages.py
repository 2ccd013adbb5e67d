"""The commands of the pages on checking and splitting data, run as they are written."""

import json
import shutil
from pathlib import Path

import pytest

from topcoat.cli.main import run
from topcoat.demo.tickets import tickets
from topcoat.model.tiny import save_tiny

DOCS = Path(__file__).parents[2] / "docs" / "howto"


def commands(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("$ topcoat ").split() for line in lines if line.startswith("$ topcoat ")]


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with the files the pages speak of, as the current one."""
    made = tickets(train=120, held_out=30)
    files = {"tickets.jsonl": made.train, "held_out.jsonl": made.held_out, "questions.jsonl": made.held_out}
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scored = "".join(f"The printer of room {at} is {at % 7} days old.,{at % 5}\n" for at in range(60))
    (tmp_path / "reviews.csv").write_text(f"text,stars\n{scored}")
    save_tiny(tmp_path / "model")
    recipe = {"model": {"path": "model"}, "data": {"train": "tickets.jsonl"}, "output": "runs/x"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["check-data.md", "split-data.md"])
def test_every_command_of_the_page_runs(page, there, capsys):
    typed = commands(page)
    assert len(typed) >= 3
    for words in typed:
        assert run(words) == 0, (words, capsys.readouterr())
        shutil.rmtree(there / "parts", ignore_errors=True)


def test_the_finding_the_page_shows_is_said_so(there, capsys):
    rows = (there / "tickets.jsonl").read_text().splitlines()
    for at, text in ((13, "The cafÃ© is near."), (14, "The m\ufffdrket is near.")):
        row = json.loads(rows[at])
        row["messages"][-1]["content"] = text
        rows[at] = json.dumps(row)
    (there / "tickets.jsonl").write_text("\n".join(rows) + "\n")
    page = (DOCS / "check-data.md").read_text(encoding="utf-8")
    shown = page.split("```\nwarn mojibake", 1)[1].split("```")[0].strip().splitlines()
    assert run(["data", "check", "tickets.jsonl"]) == 0
    out = capsys.readouterr().out
    for line in shown:
        assert line.strip() in out
