"""topcoat data show: in the terminal, as JSON, as a page; and what it says when something is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "see-what-is-trained.md"


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(tiny_recipe()))
    return str(path)


def test_rows_are_printed_with_marks_where_there_are_no_colours(topcoat, recipe):
    done = topcoat("data", "show", recipe, "--row", "2")
    assert done.code == 0, done.err
    assert "«trained»  context  ⟦dropped⟧" in done.out
    assert (
        "<|im_start|>user\nWhat is model?<|im_end|>\n<|im_start|>assistant\n«model ledom and 1<|im_end|>»" in done.out
    )
    assert "train.jsonl line 2, collated alone" in done.out
    assert "positions of filling: nothing sees them" in done.out


def test_documents_that_share_a_row_are_parted(topcoat, recipe):
    done = topcoat("data", "show", recipe, "--count", "1")
    assert done.out.count("train.jsonl line") == 3
    assert done.out.count("\n─") == 2


def test_json_holds_every_token(topcoat, recipe):
    (row,) = topcoat("data", "show", recipe, "--row", "2", "--json").json["rows"]
    (document,) = row["documents"]
    assert [run["kind"] for run in document["runs"] if not run["special"]] == ["context"] * 3 + ["trained", "context"]
    joined = "".join(token for run in document["runs"] for token in run["tokens"])
    assert joined.startswith("<|im_start|>user\nWhat is model?<|im_end|>")


def test_a_page_is_written(topcoat, recipe, tmp_path):
    done = topcoat("data", "show", recipe, "--html", str(tmp_path / "p.html"), "--json")
    assert done.json["page"] == str(tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert done.json["rows"] > 0
    assert f"{done.json['rows']} rows as the model gets them" in page


def test_a_page_replaces_an_earlier_page_and_nothing_else(topcoat, recipe, tiny_rows, tmp_path):
    page, notes = tmp_path / "p.html", tmp_path / "notes.html"
    assert [topcoat("data", "show", recipe, "--html", str(page)).code for _ in range(2)] == [0, 0]
    notes.write_text("<!doctype html>\n<title>Notes</title>")
    for kept, what in (
        (tiny_rows["train"], "is a file that this command reads"),
        (tiny_rows["validation"], "is a file that this command reads"),
        (recipe, "is a file that this command reads"),
        (str(notes), "is there already, and topcoat did not write it as a report"),
    ):
        before = Path(kept).read_bytes()
        done = topcoat("data", "show", recipe, "--html", kept)
        assert done.code == 2
        assert f"{kept} {what}\n  where: --html\n  fix:   name another file" in done.err
        assert Path(kept).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["--row", "99"], "--row 99: there is no such row", "give a number from 1 to 10"),
        (["--row", "0"], "Invalid value for '--row'", "topcoat data show --help"),
        (["model.path=./nowhere"], "model.path is ./nowhere, which is not there", "the current directory has"),
        (["data.train=./nowhere.jsonl"], "data.train is ./nowhere.jsonl, which is not there", ""),
    ],
)
def test_what_is_not_there_is_said(topcoat, recipe, arguments, what, fix):
    done = topcoat("data", "show", recipe, *arguments)
    assert done.code == 2
    assert what in done.err
    assert fix in done.err
    assert "Traceback" not in done.err


def test_the_howto_page_shows_what_the_command_prints(topcoat, tiny_recipe, tmp_path):
    (row,) = re.findall(r"```json\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "t.jsonl").write_text(row + "\n", encoding="utf-8")
    recipe = tiny_recipe(data={"train": str(tmp_path / "t.jsonl"), "validation": None})
    del recipe["evaluate"]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert shown in topcoat("data", "show", str(tmp_path / "r.yaml"), "--row", "1").out


def test_a_text_made_of_columns_is_shown(topcoat, tiny_recipe, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(tiny_recipe(data={"text_template": "Q: {prompt} A: {completion}"})))
    done = topcoat("data", "show", str(path), "--row", "2")
    assert "Q«: What is model? A: model ledom and 1<|im_end|>»" in done.out
    path.write_text(json.dumps(tiny_recipe(data={"text_template": "Q: {question}"})))
    done = topcoat("data", "show", str(path), "--row", "2")
    assert done.code == 2
    assert "train.jsonl line 2: " in done.err
    assert "question" in done.err
