"""fix: a cleaned copy of a file. Texts that can be mended are mended, rows that cannot are left out, and it is counted.

One pass may bring out what another hid (a row that was mended now repeats another), so passes follow each other until
nothing that can be fixed is found. The original is only read.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topcoat.data.checks.corpus import Corpus, corpus_of
from topcoat.data.checks.finding import count
from topcoat.data.checks.table import CHECKS
from topcoat.data.checks.verdict import Verdict, check
from topcoat.data.rows import Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import Refused, TopcoatError
from topcoat.files import write_file

PASSES = 8
LITERAL = frozenset({"role", "from", "id", "name", "type", "tool_call_id"})
"""Keys whose values are names, not text: they are never mended."""


@dataclass(frozen=True)
class Fixed:
    """What became of the rows: how many were read and written, and rows mended and left out, by check."""

    path: Path
    read: int
    written: int
    mended: dict[str, int]
    left_out: dict[str, int]

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{name}: {count(n, 'row', 'rows')} mended" for name, n in self.mended.items()]
        said += [f"{name}: {count(n, 'row', 'rows')} left out" for name, n in self.left_out.items()]
        return [f"wrote {self.written:,} of {self.read:,} rows to {self.path}", *said]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path)}


def fix(verdict: Verdict, settings: DataSettings, out: Path) -> Fixed:
    """Write the cleaned copy of the verdict's file to `out`; `settings` are those it was checked with.

    Raises:
        TopcoatError: `out` exists or has no ending of a file of rows, or the disk did not take it.
        Refused: every row would be left out.
    """
    kind = require_free(out)
    source = verdict.corpus
    if len(source.starts) > 1:
        raise TopcoatError("a mixture of several files has no one copy", "--fix", "check and fix each file by itself")
    rows = list(iter_rows(source.file))
    read = len(rows)
    mended: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for _ in range(PASSES):
        rows, changed = _one_pass(rows, verdict, mended, left_out)
        if not rows:
            raise Refused(f"nothing is left of {read:,} rows", source.file, "turn some checks off, or mend by hand")
        if not changed:
            break
        verdict = check(_again(source, rows), settings.checks)
    write_rows(out, kind, [row.values for row in rows])
    return Fixed(out, read, len(rows), dict(mended), dict(left_out))


def _one_pass(
    rows: list[Row], verdict: Verdict, mended: Counter[str], left_out: Counter[str]
) -> tuple[list[Row], bool]:
    """The rows with all findings of `verdict` fixed, and whether any was."""
    now: list[Row | None] = list(rows)
    changed = False
    for one in verdict.found:
        entry = CHECKS[one.check]
        for at in one.rows if entry.rewrite else ():
            row = now[at]
            values = {} if row is None else mend(row.values, entry.rewrite)
            if row is not None and values != row.values:
                now[at], changed = replace(row, values=values), True
                mended[one.check] += 1
        if entry.drops:
            for at in one.rows if one.finding.drop is None else one.finding.drop:
                if now[at] is not None:
                    now[at], changed = None, True
                    left_out[one.check] += 1
    return [row for row in now if row is not None], changed


def _again(source: Corpus, rows: Sequence[Row]) -> Corpus:
    """The corpus of what is left, held against the same files; lengths in tokens go with their rows' lines."""
    reading = source.reading
    if reading.label is None:  # the format was found at the first row, which may be gone
        reading = replace(reading, form=source.form)
    corpus = corpus_of(rows, reading, source.tell)
    corpus.against, corpus.benchmarks = source.against, source.benchmarks
    held = source.setting.lengths
    if held is not None:
        sizes = {source.lines[at]: pair for at, *pair in zip(held.rows, held.tokens, held.targets, strict=True)}
        kept = [(at, *sizes[line]) for at, line in enumerate(corpus.lines) if line in sizes]
        lengths = replace(held, rows=[k[0] for k in kept], tokens=[k[1] for k in kept], targets=[k[2] for k in kept])
        lengths = replace(lengths, refused={})  # they are not for a copy to leave out
        corpus.setting = replace(source.setting, lengths=lengths)
    else:
        corpus.setting = source.setting
    return corpus


def mend(value: Any, rewrite: Callable[[str], str] | None) -> Any:
    """`value` with every text in it rewritten; names of things, such as roles, stay."""
    if rewrite is None:
        return value
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, list):
        return [mend(item, rewrite) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in LITERAL and isinstance(item, str) else mend(item, rewrite)
            for key, item in value.items()
        }
    return value


def require_free(out: Path) -> str:
    """The kind of file to write, by its ending, once it is sure that nothing would be overwritten.

    Raises:
        TopcoatError: it exists, or its ending is not one of a file of rows.
    """
    if os.path.lexists(out):
        raise TopcoatError(f"{out} exists already", "--fix", "name a file that is not there; nothing is overwritten")
    kind = Path(out.name.lower().removesuffix(_packing(out))).suffix
    if kind not in WRITERS:
        fix = f"end it in {', '.join(WRITERS)}; to pack it, put {', '.join(PACKERS)} behind"
        raise TopcoatError(f"{out} has no ending of a file of rows", "--fix", fix)
    return kind


def write_rows(out: Path, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` as a file of `kind`, packed if `out` ends in a key of PACKERS, whole or not at all.

    Raises:
        TopcoatError: the folder cannot be made, or the disk did not take the file.
    """
    data = PACKERS.get(_packing(out), bytes)(WRITERS[kind](rows))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TopcoatError(f"{out.parent} cannot be made: {error.strerror}", "--fix", "name another folder") from error
    write_file(out, data)


def _packing(out: Path) -> str:
    """The ending that says how a file is packed, or nothing."""
    return out.suffix.lower() if out.suffix.lower() in PACKERS else ""


def _zstd(data: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),  # the same bytes whenever it is written
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n").encode()


def _separated(separator: str) -> Callable[[Sequence[dict[str, Any]]], bytes]:
    def write(rows: Sequence[dict[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, delimiter=separator, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in row.items()})
        return text.getvalue().encode()

    return write


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
