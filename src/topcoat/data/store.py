"""Store: tokenized rows on disk, about 4.1 bytes a token, mapped into memory where they are read.

    ids.bin      int32, the tokens of all rows, one after another
    trained.bin  one bit a token: whether it is a label
    rows.bin     ROW, one record a row: where its tokens and texts begin, its line, its counts, digests of its content
    texts.bin    for rows a metric may ask: JSON of the messages before the last answer, and that answer
    store.json   the manifest: sizes, SHA-256 of every 4 MiB, and what reading the file brought up

A folder of these is written beside and renamed into place (`files.py`), so it is there whole or not at all. What is
there is verified before it is used: all of it while that is quick, else a sample of the pieces and every size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.disk_errors import disk_error
from topcoat.errors import TopcoatError

VERSION = 1
PIECE_BYTES = 4 * 2**20
SAMPLED_PIECES = 64  # verified of a file that has more
MANIFEST = "store.json"
FILES = ("ids.bin", "trained.bin", "rows.bin", "texts.bin")

ROW = np.dtype(
    [
        ("start", "<i8"),  # first token in ids.bin
        ("text", "<i8"),  # first byte in texts.bin
        ("line", "<i8"),
        ("content", "<u8"),  # digest of the conversation: equal rows have equal ones
        ("tokens", "<u8"),  # digest of the ids
        ("length", "<i4"),  # tokens
        ("targets", "<i4"),  # labels that count
        ("answer_start", "<i4"),  # first token of the last answer, or -1
        ("largest", "<i4"),  # token id
        ("text_size", "<i4"),
        ("flags", "<u4"),
    ]
)
SPECIAL_TEXT, RESHAPED, EMPTY_ANSWER, STOPS = 1, 2, 4, 8
"""Flags of a row: its text holds special tokens; the template rewrites an answer; an answer is empty; it trains a token
that ends a turn."""


class Damaged(Exception):
    """A store whose bytes are not those that were written: the message says which."""


class StoreWriter:
    """Writes a store into a folder, some rows at a time; memory does not grow with what is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: _HashedFile(folder / name) for name in FILES}
        self.rows, self.tokens = 0, 0
        self._bits: NDArray[np.bool_] = np.zeros(0, np.bool_)  # fewer than eight, which make no byte yet

    def add(self, rows: NDArray[Any], ids: NDArray[np.int32], trained: NDArray[np.bool_], texts: bytes) -> None:
        """Append rows (ROW, whose `start` and `text` count from the first token and byte of this call)."""
        rows = rows.copy()
        rows["start"] += self.tokens
        rows["text"] += self._files["texts.bin"].size
        bits = np.concatenate([self._bits, trained])
        whole = len(bits) // 8 * 8
        self._bits = bits[whole:]
        for name, data in (
            ("ids.bin", ids.astype("<i4", copy=False).tobytes()),
            ("trained.bin", np.packbits(bits[:whole], bitorder="little").tobytes()),
            ("rows.bin", rows.tobytes()),
            ("texts.bin", texts),
        ):
            self._files[name].write(data)
        self.rows += len(rows)
        self.tokens += len(ids)

    def finish(self, found: Mapping[str, Any]) -> None:
        """Write the manifest; `found` is what reading the file brought up."""
        self._files["trained.bin"].write(np.packbits(self._bits, bitorder="little").tobytes())
        pieces = {name: file.close() for name, file in self._files.items()}
        sizes = {name: file.size for name, file in self._files.items()}
        manifest = {"version": VERSION, "rows": self.rows, "tokens": self.tokens, "sizes": sizes, "pieces": pieces}
        text = json.dumps({**manifest, "found": dict(found)})
        try:
            (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        except OSError as error:
            raise disk_error(error, self.folder / MANIFEST, len(text)) from error


class _HashedFile:
    """A file being written, with the SHA-256 of each of its pieces."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._file = open(path, "wb", buffering=2**20)  # noqa: SIM115 - closed by close()
        self._pieces: list[str] = []
        self._digest, self._filled = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise disk_error(error, self.path, len(data)) from error
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            part = rest[: PIECE_BYTES - self._filled]
            self._digest.update(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == PIECE_BYTES:
                self._next_piece()

    def _next_piece(self) -> None:
        self._pieces.append(self._digest.hexdigest())
        self._digest, self._filled = hashlib.sha256(), 0

    def close(self) -> list[str]:
        """The digests of all pieces."""
        if self._filled:
            self._next_piece()
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(error, self.path, None) from error
        return self._pieces


class Store:
    """A store that was verified, its arrays mapped. `found` is what reading the file had brought up."""

    def __init__(self, folder: Path) -> None:
        """Raises Damaged where a file is missing or is not what was written."""
        manifest = _read_manifest(folder)
        _verify(folder, manifest)
        self.found: dict[str, Any] = manifest["found"]
        self.n_rows, self.n_tokens = int(manifest["rows"]), int(manifest["tokens"])
        self.identity = hashlib.sha256(json.dumps(manifest["pieces"], sort_keys=True).encode()).hexdigest()
        """Of every row and token in it."""
        self.rows = _mapped(folder / "rows.bin", ROW)
        self._ids = _mapped(folder / "ids.bin", np.dtype("<i4"))
        self._bits = _mapped(folder / "trained.bin", np.dtype("u1"))
        self._texts = _mapped(folder / "texts.bin", np.dtype("u1"))
        if len(self.rows) != self.n_rows or len(self._ids) != self.n_tokens:
            raise Damaged("its arrays are not as long as its manifest says")

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens [start, stop) of the store: a view of the file."""
        return np.asarray(self._ids[start:stop])

    def trained(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the tokens [start, stop) are labels."""
        bits = np.unpackbits(np.asarray(self._bits[start // 8 : (stop + 7) // 8]), bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def text(self, row: int) -> Any:
        """[messages before the last answer, that answer] of a row, or None where none was kept."""
        start, size = int(self.rows["text"][row]), int(self.rows["text_size"][row])
        return json.loads(bytes(self._texts[start : start + size])) if size else None

    @property
    def n_bytes(self) -> int:
        """Of all arrays, on disk."""
        return int(self.rows.nbytes + self._ids.nbytes + self._bits.nbytes + self._texts.nbytes)


def _mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    try:
        return _mapping(path, kind)
    except OSError as error:  # deleted since it was verified
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error


def _mapping(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    size = path.stat().st_size
    if size % kind.itemsize:
        raise Damaged(f"{path.name} ends in half a record")
    return np.memmap(path, kind, "r") if size else np.zeros(0, kind)  # nothing cannot be mapped


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read") from error
    keys = {"version": int, "rows": int, "tokens": int, "sizes": dict, "pieces": dict, "found": dict}
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), kind) for key, kind in keys.items()):
        raise Damaged(f"{MANIFEST} is no manifest")
    if manifest["version"] != VERSION or any(set(manifest[key]) != set(FILES) for key in ("sizes", "pieces")):
        raise Damaged(f"{MANIFEST} is of another version")
    return manifest


def _verify(folder: Path, manifest: dict[str, Any]) -> None:
    for name in FILES:
        size, pieces = manifest["sizes"][name], manifest["pieces"][name]
        try:
            with open(folder / name, "rb") as file:
                there = os.fstat(file.fileno()).st_size
                if there != size or len(pieces) != -(-size // PIECE_BYTES):
                    raise Damaged(f"{name} has {there:,} bytes, not {size:,}")
                for number in _chosen(len(pieces)):
                    file.seek(number * PIECE_BYTES)
                    if hashlib.sha256(file.read(PIECE_BYTES)).hexdigest() != pieces[number]:
                        raise Damaged(f"{name} was changed in its bytes from {number * PIECE_BYTES:,} on")
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error


def _chosen(n: int) -> Iterable[int]:
    """All pieces, or the first, the last and others evenly between them."""
    if n <= SAMPLED_PIECES:
        return range(n)
    return sorted({round(at * (n - 1) / (SAMPLED_PIECES - 1)) for at in range(SAMPLED_PIECES)})


def refuse_damaged(error: Damaged) -> TopcoatError:
    """For a store that was just written and is not what was written: the disk is not to be trusted."""
    return TopcoatError(f"the tokenized data cannot be read back: {error}", "data", "check the disk (dmesg)")
