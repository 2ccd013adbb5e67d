"""The picture of the ranks: every linear's last rank on the page, and nothing where a run tells none."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from topcoat.report.page import write_report
from topcoat.report.ranks import rank_grid, rank_pictures

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def paths(layers: int) -> list[str]:
    return [f"model.layers.{layer}.{module}" for layer in range(layers) for module in MODULES]


def run_of(layers: int = 3) -> list[dict]:
    """Forty steps whose budget falls, and ranks now and then."""
    rows: list[dict] = [{"step": step, "loss": 2.0, "budget": max(20, 40 - step)} for step in range(1, 41)]
    rows[0]["ranks"] = dict.fromkeys(paths(layers), 12)
    rows[9]["ranks"] = dict.fromkeys(paths(layers), 9)
    rows[39]["ranks"] = {path: at % 7 for at, path in enumerate(paths(layers))}
    return rows


def words(svg: str) -> list[str]:
    """The text of a drawing, in order: that of the axes first."""
    return [re.sub(r"<[^>]*>", "", text).strip() for text in re.findall(r"<text.*?</text>", svg, flags=re.DOTALL)]


def test_a_run_without_ranks_has_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    assert rank_pictures([{"step": 1, "loss": 2.0}]) is None
    assert "<h2>Ranks</h2>" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_last_ranks_are_shown_by_layer_and_module():
    found = rank_pictures(run_of())
    assert found["said"] == ("9 linears had 108 ranks together at step 1 and have 22 at step 40: from 0 to 6 in one.")
    assert found["layers"] == [0, 1, 2]
    assert found["table"] == [
        ("q_proj", ["0", "3", "6"]),
        ("v_proj", ["1", "4", "0"]),
        ("down_proj", ["2", "5", "1"]),
    ]
    text = words(found["final"])
    assert text[-9:] == ["0", "3", "6", "1", "4", "0", "2", "5", "1"]
    assert {"q_proj", "v_proj", "down_proj", "layer"} <= set(text)


def test_the_ranks_on_the_way_and_the_budget_are_drawn_too():
    found = rank_pictures(run_of())
    text = words(found["moves"])
    assert text[-9:] == ["12", "9", "3", "12", "9", "1.67", "12", "9", "2.67"]  # means of each module, at three steps
    assert {"1", "10", "40", "step"} <= set(text)
    assert "ranks of all linears together: the budget" in words(found["budget"])
    assert rank_pictures(run_of()[:1])["moves"] is None


def test_a_large_model_is_drawn_without_figures_in_its_cells():
    found = rank_pictures(run_of(80))
    text = words(found["final"])
    assert len(found["table"][0][1]) == 80
    assert len(text) < 30
    assert {"0", "75"} <= set(text)  # every fifth layer is named


def test_a_module_that_a_layer_lacks_leaves_its_cell_empty():
    drawn = rank_grid([[1.0, None], [2.0, 3.0]], ["a", "b"], ["0", "1"], 3, name="x", below="layer")
    assert words(drawn)[-3:] == ["1", "2", "3"]


@pytest.mark.parametrize("ranks", [[1, 2], {}, {"a": -1}, {"a": "many"}, {"a": 1.5}, None, "x"])
def test_what_is_no_rank_is_passed_over(ranks):
    rows = [*run_of(), {"step": 41, "ranks": ranks}]
    assert rank_pictures(rows) == rank_pictures(run_of())


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert "src" not in dict(attrs)


def test_the_page_holds_the_pictures_and_escapes_names(tmp_path):
    attack = 'model.layers.0."><script>x</script>$\\frac{'
    rows = run_of()
    for row in rows:
        if "ranks" in row:
            row["ranks"][attack] = 3
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Ranks</h2>" in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 2  # in the drawing and in the table
    parser = Tags()
    parser.feed(page)
    assert parser.tags.count("svg") >= 4
    ids = re.findall(r'id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
