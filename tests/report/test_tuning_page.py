"""The page of a search: alone, complete, and true to the trials it is made from."""

import re
import xml.etree.ElementTree as ET

import pytest

from topcoat.report.tuning_page import range_drawing, rung_drawing, setting_drawing, tuning_page


def trial(number: int, rate: float, words: str, **losses: float) -> dict:
    rungs = {rung.removeprefix("at"): loss for rung, loss in losses.items()}
    return {
        "trial": number,
        "values": {"learning_rate": rate, "target_modules": words},
        "losses": rungs,
        "finished": "9" in rungs,
    }


TRIALS = [
    trial(0, 1e-4, "all-linear", at1=3.0, at3=2.5, at9=2.0),
    trial(1, 1e-2, "q&v", at1=3.5),
    trial(2, 1e-3, "q&v", at1=2.9, at3=2.4, at9=1.5),
]
FACTS = {
    "name": "run-<1>",
    "winner": "run/winner.yaml",
    "recipe_output": "run",
    "space": {"learning_rate": "1e-05..0.01", "target_modules": "all-linear/q&v"},
    "log": ["learning_rate"],
    "range_test": {"points": [[1e-5, 4.0], [1e-4, 3.0], [1e-3, 2.0], [1e-2, 5.0]], "low": 1e-4, "high": 1e-3},
    "slice": {"rows": 1234, "held": 56, "examples": 1234.0},
    "seconds": 125.0,
    "best": TRIALS[2],
    "trials": TRIALS,
}


def test_the_page_stands_alone_and_escapes_what_it_is_given():
    page = tuning_page(FACTS)
    assert "default-src 'none'" in page
    assert not re.search(r"<script|(src|href)=\"http", page)
    assert "run-&lt;1&gt;" in page
    assert "q&v" not in page
    assert page.count("<svg") == 4


def test_the_page_says_what_won_and_ranks_what_came_furthest_first():
    page = tuning_page(FACTS)
    assert "learning_rate 0.001, target_modules q&amp;v: loss 1.5000" in page
    for said in ("1,234", "2m 05s", "from 0.0001 to 0.001", "topcoat train run/winner.yaml"):
        assert said in page
    rows = re.findall(r"<tr( class=\"best\")?><td class=\"number\">(\d)</td>", page)
    assert rows == [(' class="best"', "2"), ("", "0"), ("", "1")]


def test_without_a_range_test_its_part_is_left_out():
    assert tuning_page(FACTS | {"range_test": None}).count("<svg") == 3


@pytest.mark.parametrize(
    "drawing",
    [
        range_drawing(FACTS["range_test"]),
        rung_drawing(TRIALS, 2),
        setting_drawing("learning_rate", "1e-05..0.01", TRIALS, TRIALS[2], True),
        setting_drawing("target_modules", "all-linear/q&v", TRIALS, TRIALS[2], False),
    ],
)
def test_a_drawing_is_xml_in_the_pages_colours(drawing):
    ET.fromstring(drawing)
    assert "var(--" in drawing
    assert "#00000" not in drawing


def test_a_trial_that_diverged_does_not_hide_the_others():
    wild = [*TRIALS, trial(3, 1e-2, "q&v", at1=9e9)]
    top = max(float(y) for y in re.findall(r">(\d+\.\d+)</text>", rung_drawing(wild, 2)))
    assert top < 10
