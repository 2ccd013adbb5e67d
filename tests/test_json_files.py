"""JSON is read so that nothing is lost in silence, and every failure has one type."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat import json_files
from topcoat.errors import TopcoatError
from topcoat.json_files import StrictDecoder, loads, quick_object, read_json_object, to_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_back(value):
    assert loads(json.dumps(value)) == value


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u\n\x00\ud800'))
def test_every_failure_is_a_json_decode_error(text):
    try:
        expected = json.loads(text)
    except ValueError:
        expected = ...
    failure = None
    try:
        found = loads(text)
    except json.JSONDecodeError as error:
        failure = error
    if failure is None:
        assert repr(found) == repr(expected)  # NaN is not itself
    else:
        assert expected is ... or "stands twice" in str(failure)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "the key 'c' stands twice"),
        ("[" * 100_000, "brackets are nested too deeply"),
        ('{"a":' * 100_000, "brackets are nested too deeply"),
        ("1" * 5000, "a number has too many digits"),
    ],
)
def test_what_python_reads_wrongly_or_dies_of_is_refused(text, said):
    with pytest.raises(json.JSONDecodeError, match=said):
        loads(text)


def test_constants_that_are_not_json_are_told():
    told: list[str] = []
    StrictDecoder(told.append).decode('{"a": NaN, "b": [-Infinity, Infinity]}')
    assert told == ["NaN", "-Infinity", "Infinity"]


def test_an_object_is_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + '{"ä": 1}'.encode())
        assert read_json_object(path) == {"ä": 1}


BAD = {
    "not JSON": (b"{", "a.json is not valid JSON: Expecting property name"),
    "not UTF-8": (b'{"a": "\xff"}', "a.json is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
    "a list": (b"[1]", "a.json is not a JSON object"),
    "deep": (b"[" * 100_000, "a.json is not valid JSON: brackets are nested too deeply"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_holds_no_object_is_refused_by_name(tmp_path, case):
    content, said = BAD[case]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(TopcoatError) as caught:
        read_json_object(tmp_path / "a.json", "copy it again")
    assert said in str(caught.value)
    assert caught.value.problems[0].fix == "copy it again"


def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, said in [
        (tmp_path / "gone", "gone cannot be read: No such file"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "pipe", "pipe is not a regular file"),
        (Path("/dev/zero"), "zero is not a regular file"),
        (tmp_path / "a\0b", "cannot be read: embedded null"),
    ]:
        with pytest.raises(TopcoatError, match=said):
            read_json_object(path)
    monkeypatch.setattr(json_files, "MOST_BYTES", 10)
    (tmp_path / "long").write_bytes(b'{"a": 12345}')
    with pytest.raises(TopcoatError, match=r"long has 12 B: it is no such file"):
        read_json_object(tmp_path / "long")


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just('a":'), inner, max_size=3)
    ),
    max_leaves=8,
)


def strictly(text: str) -> object:
    try:
        return StrictDecoder().decode(text)
    except json.JSONDecodeError:
        return None


@given(value=ODD_VALUES, spaced=st.booleans(), ascii_only=st.booleans())
def test_a_quick_object_is_the_strict_one(value, spaced, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(", ", " : ") if spaced else None)
    found = quick_object(text.encode("utf-8", "surrogatepass"))
    assert found is None or repr(found) == repr(strictly(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": 1, "a" : 2}',
        '{"a": 1, "a"\t: 2}',
        '{"a": {"b": 1, "b": 1}, "c": "\\":"}',
        r'{"a": 1, "\u0061": 2}',
        '{"a": 123456789012345678901234567890}',
        '{"a": NaN}',
        '{"a": 1e999}',
        r'{"a": "\ud800"}',
        '{"a": 1} {"b": 2}',
        "[1]",
        "\ufeff{}",
        '{"a": "\x01"}',
        "{" * 2000,
    ],
)
def test_what_is_read_loosely_is_left_to_the_strict_reader(text):
    assert quick_object(text.encode()) is None


def test_usual_rows_are_read_quickly():
    for text in (
        '{"messages": [{"role": "user", "content": "Note : \\"a\\" b"}], "n": 3, "x": null}\n',
        '{"a":"","b":[]}',
    ):
        assert quick_object(text.encode()) == json.loads(text)


def test_json_holds_what_orjson_does_not():
    for value in ([10**30, "é"], {"a": "\ud800"}, [1.5, None]):
        assert json.loads(to_json(value).decode("utf-8", "surrogatepass")) == value
