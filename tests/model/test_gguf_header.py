"""A hostile or damaged GGUF header is a TopcoatError: never a traceback, never a large allocation."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.model.gguf_header import read_header
from topcoat.model.gguf_source import GgufSource
from topcoat.model.tiny import tiny_model


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(name: str, shape=(32,), kind=0, offset=0) -> bytes:
    dims = b"".join(struct.pack("<Q", n) for n in shape)
    return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def file(tmp_path, *parts: bytes, tensors=0, metadata=0, version=3, data=b""):
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, metadata) + b"".join(parts)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def test_a_well_formed_file_is_read(tmp_path):
    values = np.arange(32, dtype=np.float32)
    key = string("a.list") + struct.pack("<IIQ", 9, 5, 2) + struct.pack("<ii", 7, -1)
    header = read_header(file(tmp_path, key, tensor("x"), tensors=1, metadata=1, data=values.tobytes()))
    assert header.metadata == {"a.list": [7, -1]}
    (entry,) = header.entries
    with open(header.path, "rb") as opened:
        opened.seek(entry.offset)
        assert np.array_equal(np.frombuffer(opened.read(entry.n_bytes), np.float32), values)


BIG = 1 << 60
CASES = {
    "not a GGUF file": lambda t: _written(t, b"\x80\x02}q\x00" * 20),
    "expected 4 bytes, found 2": lambda t: _written(t, b"GG"),
    "version 9": lambda t: file(t, version=9),
    "big-endian": lambda t: _written(t, b"GGUF" + struct.pack(">I", 3) + bytes(64)),
    "the tensor table claims": lambda t: file(t, tensors=BIG),
    "the metadata claims": lambda t: file(t, metadata=BIG),
    "claims a string of": lambda t: file(t, struct.pack("<Q", BIG), bytes(64), metadata=1),
    "metadata k claims": lambda t: file(t, string("k"), struct.pack("<IIQ", 9, 8, BIG), bytes(64), metadata=1),
    "has the unknown type 77": lambda t: file(t, string("k"), struct.pack("<I", 77), bytes(64), metadata=1),
    "nested too deep": lambda t: file(
        t, string("k"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 9, bytes(64), metadata=1
    ),
    "metadata key 'k' stands twice": lambda t: file(t, (string("k") + struct.pack("<II", 4, 1)) * 2, metadata=2),
    "tensor x has 9 dimensions": lambda t: file(t, tensor("x", (1,) * 9), tensors=1, data=bytes(64)),
    "tensor x has the unknown type 200": lambda t: file(t, tensor("x", kind=200), tensors=1, data=bytes(128)),
    "not whole Q4_0 blocks of 32": lambda t: file(t, tensor("x", (33,), kind=2), tensors=1, data=bytes(128)),
    "tensor x stands twice": lambda t: file(t, tensor("x"), tensor("x", offset=128), tensors=2, data=bytes(256)),
    "tensor y overlaps": lambda t: file(t, tensor("x"), tensor("y", offset=64), tensors=2, data=bytes(256)),
    "the copy is incomplete": lambda t: file(t, tensor("x", (1 << 40,)), tensors=1, data=bytes(128)),
    "expected 224 bytes, found 160": lambda t: file(t, tensor("x", (40,)), tensors=1, data=bytes(96)),
}


def _written(tmp_path, data: bytes):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("message", CASES)
def test_a_lying_header_is_named_and_allocates_nothing(tmp_path, message):
    path = CASES[message](tmp_path)
    tracemalloc.start()
    with pytest.raises(TopcoatError) as caught:
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert message in str(caught.value)
    assert "hostile.gguf" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_header_is_an_error_or_a_header(tmp_path_factory, data):
    good = bytearray(
        file(
            tmp_path_factory.mktemp("gguf"),
            string("general.architecture") + struct.pack("<I", 8) + string("llama"),
            string("list") + struct.pack("<IIQ", 9, 8, 2) + string("ab") + string("c"),
            tensor("token_embd.weight", (32, 2)),
            tensors=1,
            metadata=2,
            data=bytes(256),
        ).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    path = _written(tmp_path_factory.mktemp("gguf"), bytes(good[: cut if data.draw(st.booleans()) else len(good)]))
    with contextlib.suppress(TopcoatError):
        assert all(entry.offset + entry.n_bytes <= path.stat().st_size for entry in read_header(path).entries)


def test_a_truncated_model_is_named_with_both_sizes(write_gguf):
    path = write_gguf(tiny_model("llama"))
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) // 2, 100, 10):
        path.write_bytes(whole[:keep])
        with pytest.raises(TopcoatError) as caught:
            GgufSource(path)
        assert path.name in str(caught.value)
