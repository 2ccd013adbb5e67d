"""The page of a data check: it stands alone, escapes what rows hold, hides secrets, and draws its plots."""

import re
from html.parser import HTMLParser

import pytest
from planted import PLANTED, clean_rows, label_rows

from topcoat.data.checks.corpus import corpus_of
from topcoat.data.checks.reading import Reading
from topcoat.data.checks.settings import DataChecks
from topcoat.data.checks.verdict import check
from topcoat.data.rows import Row
from topcoat.report.check_page import render


def page(rows):
    corpus = corpus_of([Row(row, "t.jsonl", line) for line, row in enumerate(rows, 1)], Reading())
    return render(check(corpus, DataChecks()))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def spoiled():
    rows = clean_rows(120)
    for name in ("exact_duplicates", "secrets", "personal_data"):
        PLANTED[name].spoil(rows)
    rows[70] = {
        "prompt": "<script>alert(1)</script>\x00\x1b[1m </td> {{ 7 * 7 }}",
        "completion": "I am an AI language model $x_1$.",
    }
    rows[71] = dict(rows[19])  # a copy of a row with a secret
    return page(rows)


def test_it_names_nothing_outside_itself(spoiled):
    tags = Tags(spoiled).found
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "onload")]
    assert "default-src 'none'" in spoiled
    assert not re.search(r"url\((?!#)", spoiled)


def test_what_a_row_holds_is_text(spoiled):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd\ufffd[1m" in spoiled
    assert "{{ 7 * 7 }}" in spoiled


def test_secrets_are_on_no_page_whatever_else_their_row_has(spoiled):
    for value in ("AKIAQ3EGPJ7LMN2RSTUV", "t0pS3cretpw", "jane.miller@gmail.com", "DE89 3704"):
        assert value not in spoiled
    assert "AWS access key" in spoiled


def test_findings_stand_under_their_family_with_policy_and_rows(spoiled):
    assert re.search(r"<h2>Diversity.*exact_duplicates.*<h2>Quality.*refusals", spoiled, re.DOTALL)
    assert "same as line 4" in spoiled
    assert "which stop" in spoiled


def test_plots_are_drawn_of_lengths_and_labels():
    labels = ("billing", "$x_1$ & <b>", "日本語", "a" * 50)
    drawn = page(label_rows(120, labels))
    assert drawn.count("<svg") == 2
    assert "$x_1$ &amp; &lt;b&gt;" in drawn
    assert "日本語" in drawn
    assert page(clean_rows(60)).count("<svg") == 1


@pytest.mark.parametrize("rows", [clean_rows(1), [{"prompt": "a", "completion": "b"}] * 3, label_rows(60, ("", "x"))])
def test_small_and_odd_files_have_a_page(rows):
    assert "</html>" in page(rows)
