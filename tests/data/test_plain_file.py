"""The short way: files of JSON Lines that go through C have the very bytes of the long way, or go that way."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from feed_rows import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_here import ISAS
from odd_texts import SPECIAL, texts_of

from topcoat.data import plain_file, plain_lines, prepare
from topcoat.data.columns import Columns
from topcoat.data.line_arrays import BLANK, PLAIN, LineReader, digests, joined
from topcoat.data.plain_lines import PlainLines, Unplain
from topcoat.data.prepare import Preparation
from topcoat.data.store import Store
from topcoat.data.words import NotSeparable
from topcoat.errors import TopcoatError
from topcoat.kernels.native.library import threadless_library

pytestmark = pytest.mark.skipif(not ISAS, reason="there is no compiler here")
FAMILIES = ("chatml", "llama3", "qwen3")
TEXT = texts_of(*SPECIAL, "\x00", "\x1f", "\x7f", '"', "\\", "/", most=10)
ROLES = st.sampled_from(
    [
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
        ("user", "user", "assistant"),
        ("user", "assistant", "assistant"),
        ("developer", "user", "assistant"),
        ("user", "assistant", "tool", "assistant"),
    ]
)
BESIDE = st.fixed_dictionaries(
    {}, optional={"id": st.integers(0, 10**15), "source": TEXT, "tags": st.just([True, None])}
)


@st.composite
def chats(draw):
    messages = [{"role": role, "content": draw(TEXT)} for role in draw(ROLES)]
    if draw(st.integers(0, 9)) == 0:
        messages[-1]["name"] = draw(TEXT)
    return draw(BESIDE) | {"messages": messages}


PAIRS = st.builds(lambda a, b, beside: beside | {"prompt": a, "completion": b}, TEXT, TEXT, BESIDE)
ALPACA = st.builds(lambda a, b, c: {"instruction": a, "input": b, "output": c}, TEXT, TEXT | st.just(""), TEXT)
SHARED = st.builds(
    lambda a, b: {"conversations": [{"from": "human", "value": a}, {"value": b, "from": "gpt"}]}, TEXT, TEXT
)
ROWS = st.one_of(*(st.lists(kind, min_size=1, max_size=9) for kind in (chats(), PAIRS, ALPACA, SHARED)))
GOOD = {"prompt": "Who is there?", "completion": "Only me."}
WRITTEN = st.sampled_from(
    [
        {"ensure_ascii": False},
        {"ensure_ascii": True},
        {"ensure_ascii": False, "separators": (" ,\t", " : ")},
        {"separators": (",", ":")},
    ]
)


def preparation(chat, loss_on="assistant") -> Preparation:
    return Preparation(chat.tokenizer, None, chat.renderer, "auto", Columns(), loss_on, ["rewritten_answers"])


def stored(way, path: Path, made: Preparation, texts: bool) -> tuple[str, dict] | str:
    """What the store of a file is, or what is said of it."""
    first = next(prepare.iter_rows(path))
    source = prepare._Source(str(path), (first.line, first.values), made, texts)
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepare._write(source, way, Path(folder), None)
        except (TopcoatError, NotSeparable) as error:
            return str(error)
        store = Store(Path(folder))
        return store.identity, store.found


@pytest.fixture(scope="module", params=FAMILIES)
def chat_here(request, chat_of):
    return chat_of(request.param)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=ROWS, how=WRITTEN, texts=st.booleans(), size=st.sampled_from([60, 300, 2**19]))
def test_both_ways_store_the_same(chat_here, tmp_path_factory, drawn, how, texts, size):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row, **how) + "\n" for row in drawn), encoding="utf-8")
    made = preparation(chat_here)
    long = stored(prepare._as_they_stand, path, made, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_file, "CHUNK_BYTES", size)
        patch.setattr(plain_lines, "MOST_LEFT", 1.0)
        with suppress(Unplain):
            assert stored(prepare._short, path, made, texts) == long


@pytest.mark.parametrize("loss_on", ["assistant", "completion", "last_turn", "all"])
def test_plain_rows_do_go_the_short_way(chatml, write, monkeypatch, loss_on):
    drawn = [*rows(200), {**GOOD, "prompt": "a <|im_end|> b"}, *rows(100), {**GOOD, "completion": "ends in <|im_"}]
    path = Path(write("a.jsonl", drawn))
    made = preparation(chatml, loss_on)
    long = stored(prepare._as_they_stand, path, made, True)
    monkeypatch.setattr(plain_file, "CHUNK_BYTES", 3000)
    asked, once = [], plain_file.Workers.ask
    monkeypatch.setattr(plain_file.Workers, "ask", lambda self, *given: asked.append(given[1]) or once(self, *given))
    assert stored(prepare._short, path, made, True) == long
    assert sorted(line for some in asked for line, _ in some) == [201, 302]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(chatml, write, monkeypatch, count):
    path = Path(write("a.jsonl", rows(300)))
    made = preparation(chatml)
    once = stored(prepare._short, path, made, False)
    monkeypatch.setattr(plain_file, "CHUNK_BYTES", 500)
    monkeypatch.setattr(plain_file, "MOST_WORKERS", count)
    monkeypatch.setattr(plain_file.os, "cpu_count", lambda: count)
    assert stored(prepare._short, path, made, False) == once


def test_a_packed_file_is_that_which_it_packs(chatml, write):
    data = b"".join(orjson.dumps(row) + b"\r\n" for row in rows(50)) + b" \n\n"
    made = preparation(chatml)
    plain, packed = Path(write("a.jsonl", data)), Path(write("b.jsonl.gz", gzip.compress(data)))
    assert stored(prepare._short, plain, made, False) == stored(prepare._short, packed, made, False)


BAD = {
    "a float inside": b'{"messages": [{"role": "user", "content": "a", "weight": 0.5}]}',
    "a repeated key": b'{"prompt": "a", "prompt": "b", "completion": "c"}',
    "not JSON": b'{"prompt": "a", "completion": "c"',
    "NaN": b'{"prompt": "a", "completion": "c", "score": NaN}',
    "half a pair": b'{"prompt": "\\ud800", "completion": "c"}',
    "not UTF-8": b'{"prompt": "\xff", "completion": "c"}',
    "no object": b"[1, 2]",
    "another format": b'{"text": "a"}',
    "a text that is none": b'{"prompt": null, "completion": "c"}',
    "a blank text": b'{"prompt": " ", "completion": " "}',
    "an image": b'{"prompt": "a", "completion": "c", "image": "x.png"}',
    "a trap": b'{"prompt": "a", "completion": "c"} {"prompt": "a", "completion": "c"}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_with_a_row_that_is_odd_ends_as_in_the_long_way(chatml, load, write, monkeypatch, name):
    good = orjson.dumps(GOOD) + b"\n"
    path = write("a.jsonl", 20 * good + BAD[name] + b"\n" + 20 * good)

    def ending():
        try:
            return load(path, cache=False).identity()
        except TopcoatError as error:
            return str(error)

    short = ending()
    monkeypatch.setattr(prepare, "_short", _refuse)
    assert ending() == short


def _refuse(source):
    raise Unplain
    yield


def test_a_rendering_that_is_another_ends_the_short_way(chatml, load, write, monkeypatch):
    path = write("a.jsonl", rows(30))
    expected = load(path, cache=False).identity()
    tried = []

    def verify(self, messages, text):
        tried.append(text)
        raise NotSeparable(text)

    monkeypatch.setattr("topcoat.data.straight.Straight.verify", verify)
    assert load(path, cache=False).identity() == expected
    assert tried


def test_an_interrupt_ends_the_threads(chatml, load, write, monkeypatch):
    monkeypatch.setattr(plain_file, "CHUNK_BYTES", 200)
    begun = []
    once = PlainLines.encode
    monkeypatch.setattr(PlainLines, "encode", lambda self, *given: begun.append(1) or once(self, *given))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.StoreWriter, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(write("a.jsonl", rows(900)), cache=False)
    assert len(begun) < 60


def test_a_row_that_is_too_long_is_said_by_the_long_way(chatml, load, write, monkeypatch):
    monkeypatch.setattr(plain_file, "MOST_ROW_BYTES", 1000)
    monkeypatch.setattr(plain_file, "CHUNK_BYTES", 100)
    path = Path(write("a.jsonl", [GOOD, {**GOOD, "completion": "long " * 400}]))
    with pytest.raises(Unplain):
        stored(prepare._short, path, preparation(chatml), False)


VALUES = st.recursive(
    TEXT | st.booleans() | st.none() | st.integers(-(10**14), 10**14),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def texts_in(value, depth=0) -> list[str]:
    """The texts that are not empty, in their order."""
    if isinstance(value, str):
        return [value] if value else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts_in(one)]


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.lists(st.dictionaries(st.sampled_from(["prompt", "x", "y"]), VALUES, max_size=3), min_size=1, max_size=5),
    how=WRITTEN,
)
def test_the_texts_of_lines_are_those_of_their_json(drawn, how):
    read = LineReader(threadless_library(), ["<|im_end|>"]).read(
        "\n".join(json.dumps(row, **how) for row in drawn).encode()
    )
    assert len(read.kinds) == len(drawn)
    ends = [*read.first_texts[1:].tolist(), len(read.starts)]
    for row, kind, first, end in zip(drawn, read.kinds, read.first_texts.tolist(), ends, strict=True):
        if kind == PLAIN:
            found = [read.text(number) for number in range(first, end)]
            assert found == texts_in(row)
            for number, text in zip(range(first, end), found, strict=True):
                assert read.left[number] == len(text.encode()) - len(text.lstrip().encode())
                if text.strip():
                    assert read.right[number] == len(text.encode()) - len(text.rstrip().encode())
                near = text.rstrip().endswith(tuple("<|im_end|>"[:n] for n in range(1, 10)))
                assert read.wary[number] == ("<|im_end|>" in text or near)
        else:
            assert first == end


@pytest.mark.parametrize(
    ("text", "wary"),
    [("a\n", True), ("a  ", True), ("a b", False), ("a\n\nb", True), ("a \tx", False), ("a  xb", True), ("<", True)],
)
def test_a_text_to_be_wary_of_may_begin_with_white_space(text, wary):
    read = LineReader(threadless_library(), ["\n\n", "  x", "<end>"]).read(json.dumps({"a": text}).encode())
    assert read.wary.tolist() == [wary]


def test_a_child_that_encodes_imports_no_torch():
    said = "import sys, topcoat.data.encode; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "USE_TORCH": "0"}
    done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40), around=st.sampled_from([b'{"a": "%s"}', b'{"a": %s}', b'{"%s": 1}', b"%s"]))
def test_what_is_plain_is_json_and_says_the_same(data, around):
    line = around.replace(b"%s", data.replace(b"\n", b""))
    read = LineReader(threadless_library(), []).read(line) if line else None
    if read is not None and read.kinds[0] == PLAIN:
        value = json.loads(line)
        assert [read.text(number) for number in range(len(read.starts))] == texts_in(value)
    if read is not None and read.kinds[0] == BLANK:
        assert not line.strip(b" \t\r")


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(TEXT, min_size=1, max_size=6))
def test_quoted_pieces_and_digests_are_orjsons_and_hashlibs(parts):
    library, source = threadless_library(), "".join(parts).encode()
    sizes = np.array([len(part.encode()) for part in parts])
    padded = np.frombuffer(source + b"\0", np.uint8)
    made, ends = joined(library, padded, np.cumsum(sizes) - sizes, sizes, np.ones(len(parts), np.bool_))
    borders = np.concatenate([[0], ends])
    expected = [orjson.dumps(part)[1:-1] for part in parts]
    assert [made[a:b].tobytes() for a, b in pairwise(borders)] == expected
    assert digests(library, made, borders).tolist() == [
        int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little") for part in expected
    ]


def test_digests_of_every_length():
    data = np.arange(400, dtype=np.uint8)
    borders = np.cumsum([0, *(n for n in (0, 1, 127, 128, 129, 0))])
    expected = [
        int.from_bytes(hashlib.blake2b(data[a:b].tobytes(), digest_size=8).digest(), "little")
        for a, b in pairwise(borders)
    ]
    assert digests(threadless_library(), data, borders).tolist() == expected
