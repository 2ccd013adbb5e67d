"""Characters that nobody sees are found and taken out; what scripts, emoji and flags need stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.data.checks.hidden import hidden_characters, strip_hidden

SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\0b", "U+0000 NUL"),
        ("a\x07b", "U+0007 CONTROL CHARACTER"),
        ("a\u202eb", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a\u2066b", "U+2066 LEFT-TO-RIGHT ISOLATE"),
        ("a\U000e0061b", "U+E0061 TAG LATIN SMALL LETTER A"),
        ("שלום \u202eb", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a\x1bb", "U+001B ESCAPE"),
    ],
)
def test_a_hidden_character_is_named(text, said, corpus):
    for row in ({"prompt": text, "completion": "Yes."}, {"prompt": "Why?", "completion": text}):
        (finding,) = hidden_characters(corpus([{"prompt": "So?", "completion": "No."}, row]))
        assert finding.rows == [1]
        assert finding.details == {1: said}
    assert hidden_characters(corpus([{"prompt": strip_hidden(text), "completion": "Yes."}])) == []


@pytest.mark.parametrize("text", ["a\tb\r\nc", "👩\u200d👧", SCOTLAND, "می\u200cخواهم", "\u202bשלום\u202c", "cafÃ©"])
def test_what_is_needed_is_left(text, corpus):
    assert strip_hidden(text) == text
    assert hidden_characters(corpus([{"prompt": text, "completion": text}])) == []


@given(st.text(st.characters(max_codepoint=0x2100) | st.sampled_from("\U000e0041\U0001f3f4")))
def test_stripping_twice_is_stripping_once(text):
    once = strip_hidden(text)
    assert strip_hidden(once) == once
