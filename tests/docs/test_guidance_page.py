"""The page on guidance lists the rules as the table has them, and shows what the command prints."""

import shlex
from pathlib import Path

from topcoat.cli.main import run
from topcoat.recipe.rules import RULES

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "guidance.md").read_text(encoding="utf-8")


def test_the_page_lists_every_rule_and_no_other():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{rule.id}` | {rule.severity} | {rule.summary} | {rule.source} |" for rule in RULES]


def test_the_command_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text("model: smollm2-135m\ndata: t.jsonl\noutput: runs/x\n")
    monkeypatch.chdir(tmp_path)
    command = PAGE.split("```console\n$ topcoat ")[1].partition("\n")[0]
    shown = PAGE.split("```console\n$ topcoat ")[1].split("```\n")[2].strip()
    assert shown.startswith("warning: ")
    assert run([*shlex.split(command), "--device", "l4"]) == 0
    assert shown in capsys.readouterr().out.splitlines()
