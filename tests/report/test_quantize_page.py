"""The page of measured number formats: figures as they are, names escaped, nothing from elsewhere."""

import math
import re

import pytest

from topcoat.report.quantize_page import error_table, render, row


def measured(name, bits, perplexity, errors):
    mean = sum(errors.values()) / max(1, len(errors))
    return {
        "name": name,
        "bits_per_weight": bits,
        "weight_bytes": 1 << 20,
        "load_s": 1.5,
        "score_s": 2.0,
        "perplexity": perplexity,
        "tokens": 1234,
        "errors": errors,
        "mean_error": mean,
    }


@pytest.fixture
def report():
    paths = [f"model.layers.{n}.mlp.{kind}" for n in range(3) for kind in ("up_proj", "down_proj")]
    stored = measured("as stored", 16, 10.0, dict.fromkeys(paths, 0.0))
    nf4 = measured("nf4", 4.13, 11.0, {path: 0.1 + 0.01 * at for at, path in enumerate(paths)})
    broken = measured("int2+rounding=<b>", 3.0, math.inf, dict.fromkeys(paths, 0.4))
    return {"model": "/some/where/tiny", "text": "text.txt", "formats": [stored, nf4, broken]}


def test_a_line_says_what_a_format_takes_and_adds(report):
    stored, nf4, broken = report["formats"]
    assert row(stored, stored) == ["as stored", "16.00", "1.0 MiB", "0", "10.000", "", "1.5s", "2.0s"]
    assert row(nf4, stored)[3:6] == ["13 %", "11.000", "+10.00 %"]
    assert row(broken, stored)[4] == "not finite"


def test_errors_are_the_means_of_a_kind_over_the_blocks(report):
    table = dict(error_table(report["formats"]))
    assert table == {"up_proj": ["12 %", "40 %"], "down_proj": ["13 %", "40 %"]}


def test_the_page_stands_alone_and_escapes_names(report):
    page = render(report)
    assert "int2+rounding=&lt;b&gt;" in page
    assert "<b>" not in page
    assert "1,234 predicted tokens of text.txt" in page
    assert page.count("<svg") == 2
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<script" not in page


def test_a_model_that_nothing_was_done_to_has_no_picture_of_errors(report):
    report["formats"] = report["formats"][:1]
    assert "Where it is wrong" not in render(report)
