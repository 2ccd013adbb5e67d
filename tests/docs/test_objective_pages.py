"""The commands and the Python of the pages on labels and plain text, run as they are written."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from topcoat.cli.main import run
from topcoat.model.tiny import save_tiny

DOCS = Path(__file__).parents[2] / "docs" / "howto"
TICKETS = [("The printer does not print.", "hardware"), ("The invoice shows the wrong amount.", "billing")]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def typed(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "console")).splitlines()
    return [line.removeprefix("$ topcoat ").split() for line in lines if line.startswith("$ topcoat ")]


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with the files the pages speak of, as the current one."""
    rows = [{"text": f"{text} {at}", "label": label} for at in range(30) for text, label in TICKETS]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "book.txt").write_text("It was the best of coats. It was the thinnest of coats.\n" * 60)
    save_tiny(tmp_path / "model")
    for name, page, folder in (
        ("classify.yaml", "classify.md", "runs/labels"),
        ("continue.yaml", "continue-pretraining.md", "runs/book"),
    ):
        recipe = YAML(typ="safe").load(blocks(page, "yaml")[0])
        recipe["train"] |= {"max_steps": 6, "batch_size": 8, "learning_rate": 0.01}
        recipe |= {"model": {"path": "model", "compute_dtype": "fp32"}, "output": folder}
        (tmp_path / name).write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_on_labels_trains_chats_merges_and_loads(there, capsys, monkeypatch):
    for words in typed("classify.md"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("The printer is on fire.\n"))
        assert run(words) == 0, (words, capsys.readouterr())
    capsys.readouterr()
    for block in blocks("classify.md", "python"):
        exec(block, {})
    assert capsys.readouterr().out.strip() in {label for _, label in TICKETS}


def test_the_page_on_plain_text_trains(there, capsys):
    for words in typed("continue-pretraining.md"):
        assert run(words) == 0, (words, capsys.readouterr())
    notes = json.loads((there / "runs/book/results.json").read_text())["data"]["notes"]
    assert any("windows of at most 128 tokens" in note for note in notes)
