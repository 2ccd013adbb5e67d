"""prepare: a file of rows -> a Store of its tokens, kept in the cache under the hash of all that decides it.

    key = SHA-256 of: the file's bytes, tokenizer, template, format, columns, what is trained, and the code that does it

Rows go to one or two worker processes in batches and their arrays come back in the same order, so neither the number of
workers nor their speed changes a byte. Nothing of a file is held but the batches in hand. A row that is wrong is said
with all others that are, and then nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from transformers import PreTrainedTokenizerBase

from topcoat.data.cache import Cache
from topcoat.data.columns import Columns
from topcoat.data.lines import names
from topcoat.data.opening import Reached
from topcoat.data.plain_file import PlainFile, arrays_in
from topcoat.data.plain_lines import Unplain
from topcoat.data.progress import Bar, late_bar
from topcoat.data.render import Renderer
from topcoat.data.rows import BadRows, iter_rows, place
from topcoat.data.store import VERSION, Store, StoreWriter
from topcoat.data.words import NotSeparable
from topcoat.data.workers import BATCH_CHARACTERS, BATCH_ROWS, Encoded, FormatUnknown, Workers
from topcoat.errors import TopcoatError
from topcoat.files import CHUNK_BYTES
from topcoat.kernels.native.build import FOLDER as NATIVE

COMPILED = ("pieces.h", "rows.c", "utf8.h", "words.c")
"""The sources in C of what turns rows into tokens."""


@dataclass(frozen=True)
class Preparation:
    """What decides the tokens of a file, beside the file."""

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    renderer: Renderer
    form: str
    columns: Columns
    loss_on: str
    allow: Sequence[str]

    @cached_property
    def spec(self) -> str:
        """The tokenizer's tokenizer.json."""
        return str(self.tokenizer.backend_tokenizer.to_str())

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of an Encoder."""
        return {
            "tokenizer": self.tokenizer,
            "chat_template": self.chat_template,
            "form": self.form,
            "columns": self.columns,
            "loss_on": self.loss_on,
            "allow": list(self.allow),
        }

    def key(self, content: str, kind: str, texts: bool) -> str:
        """The name of the store of a file with this SHA-256 and these endings."""
        chat = self.renderer.chat
        decisive = {
            "content": content,
            "kind": kind,
            "texts": texts,
            "tokenizer": hashlib.sha256(self.spec.encode()).hexdigest(),
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "template": chat.text,
            "date": date.today().isoformat() if chat.names_the_date else None,
            "form": self.form,
            "columns": [dict(self.columns.renames), self.columns.text_template],
            "loss_on": self.loss_on,
            "allow": sorted(self.allow),
            "code": _code(),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:40]


@cache
def _code() -> list[str]:
    """The programs that turn rows into tokens: this folder's sources, those in C, and the libraries below them."""
    digest = hashlib.sha256()
    sources = [*sorted(Path(__file__).parent.rglob("*.py")), *(NATIVE / name for name in COMPILED)]
    for source in sources:
        digest.update(source.read_bytes())
    libraries = [f"{name} {version(name)}" for name in ("tokenizers", "transformers", "jinja2", "orjson", "pyarrow")]
    return [str(VERSION), digest.hexdigest(), *libraries]


def prepare(path: str, preparation: Preparation, *, texts: bool, cache: Cache, bar: Bar | None) -> Store:
    """The store of the file at `path`, taken from the cache or built. `texts` keeps what a metric may ask of a row.

    Raises:
        TopcoatError: the file or its rows are wrong, the template was stopped, or the disk did not take the store.
    """
    first = next(iter_rows(path))  # says what is wrong with the file before it is read whole
    before = _stamp(path)
    content = _content(path, bar)
    kind = "".join(Path(path).suffixes[-2:]).lower()

    def build(folder: Path) -> None:
        _build(_Source(path, (first.line, first.values), preparation, texts), folder, bar)
        if _stamp(path) != before:
            what = f"{Path(path).name} was changed while it was read"
            raise TopcoatError(what, path, "wait until it is written, then start again")

    return cache.store(preparation.key(content, kind, texts), build, Path(path).name)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _content(path: str, bar: Bar | None) -> str:
    """SHA-256 of the file's bytes."""
    digest, done = hashlib.sha256(), 0
    total = os.path.getsize(path)
    with open(path, "rb") as file, late_bar(bar, f"reading {Path(path).name} (MB)") as advance:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            advance(done // 10**6, total // 10**6)
    return digest.hexdigest()


First = tuple[int, dict[str, Any]]
"""(line, values) of a file's first row."""


@dataclass(frozen=True)
class _Source:
    """A file that is being read: what is known of it, what it brings up, and how far it was read."""

    path: str
    first: First
    preparation: Preparation
    texts: bool
    notes: list[str] = field(default_factory=list)
    reached: Reached = field(default_factory=Reached)


def _short(source: _Source) -> Generator[Encoded]:
    """The file's rows in the short way. Raises Unplain where it must be read in another."""
    its = source.preparation
    file = PlainFile(source.path, its.renderer, its.spec, its.form, its.columns, its.loss_on, source.texts)
    with Workers({**its.arguments, "by_words": False}) as workers:  # of the few rows that are not plain
        yield from file.encode(source.first, workers, source.reached)


def _by_words(source: _Source) -> Generator[Encoded]:
    """The file's rows by worker processes. Raises NotSeparable where texts must be encoded whole."""
    return _by_workers(source, source.preparation.arguments)


def _as_they_stand(source: _Source) -> Generator[Encoded]:
    """The file's rows by worker processes, every text encoded whole."""
    return _by_workers(source, {**source.preparation.arguments, "by_words": False})


def _by_workers(source: _Source, arguments: dict[str, Any]) -> Generator[Encoded]:
    with Workers(arguments) as workers:
        batches = _batches(source.path, source.notes, source.reached)
        yield from workers.encode(batches, source.path, source.first, source.texts)


def _build(source: _Source, folder: Path, bar: Bar | None) -> None:
    """Write the store of a file into `folder`, in the first way that will do."""
    with suppress(Unplain):
        _write(source, _short, folder, bar)
        return
    for way in (_by_words, _as_they_stand):
        with suppress(NotSeparable):
            try:
                _write(source, way, folder, bar)
            except FormatUnknown:  # perhaps for a column that is named wrongly
                present = {str(name) for row in iter_rows(source.path) for name in row.values}
                source.preparation.columns.require(present, source.path)
                raise
            return


def _write(source: _Source, way: Callable[[_Source], Generator[Encoded]], folder: Path, bar: Bar | None) -> None:
    """Write the store of a file into `folder`, read in one way."""
    source = replace(source, notes=[], reached=Reached())
    path, notes, reached = source.path, source.notes, source.reached
    writer = StoreWriter(folder)
    bad, form, lost = BadRows(), "", 0
    total = os.path.getsize(path)  # rows of a packed or binary file cannot be counted in advance
    present: set[str] = set()
    doubts: dict[str, tuple[int, int]] = {}  # what is odd -> rows, and the line of the first
    with late_bar(bar, f"tokenizing {Path(path).name} (MB)") as advance, closing(way(source)) as batches:
        for encoded in batches:
            form = form or encoded.values["form"]
            present.update(encoded.values["columns"])
            for _, what, fix in encoded.values["bad"]:
                where, _, said = what.partition(": ")
                bad.add(where, said, fix)
            bad.count += encoded.values["bad_count"] - len(encoded.values["bad"])
            if not bad.count:
                writer.add(*arrays_in(encoded.values, encoded.blob))
                for doubt, (count, line) in encoded.values["doubts"].items():
                    before, first_line = doubts.get(doubt, (0, line))
                    doubts[doubt] = (before + count, first_line)
            lost += encoded.values["lost_reasoning_tokens"]
            advance(min(reached.bytes, total) // 10**6, total // 10**6)
    source.preparation.columns.require(present, path)
    bad.raise_if_any()
    for what, (count, line) in doubts.items():
        notes.append(f"warning: {count:,} {'row' if count == 1 else 'rows'}: {what} (first: {place(path, line)})")
    found = {"form": form, "notes": notes, "columns": [names(source.first[1])], "lost_reasoning_tokens": lost}
    writer.finish(found)


def _batches(path: str, notes: list[str], reached: Reached) -> Generator[list[tuple[int, dict[str, Any]]]]:
    """(line, values) of the rows of a file, some at a time."""
    batch: list[tuple[int, dict[str, Any]]] = []
    size = 0
    for row in iter_rows(path, notes, reached):
        batch.append((row.line, row.values))
        size += _size(row.values)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(values: dict[str, Any]) -> int:
    """About how many bytes a row has."""
    try:
        return len(orjson.dumps(values))
    except TypeError:  # a value that is none of JSON's, as Parquet has them
        return _characters(values)


def _characters(value: Any) -> int:
    """About how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 8
