"""What is fuzzed: each kind of file that Topcoat reads, with valid files to start from and the reader that must hold.

A reader holds when every malformed file is read or is a TopcoatError, within two seconds of processor time. Run as a
program, a range of one target's files is tried in this process, so that a death by signal is seen by who started it:

    python fuzz_targets.py TARGET FOLDER FIRST COUNT

prints one JSON object: {"tried", "read", "slowest_s", "peak_kb", "failures": [[number, what], ...]}.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_seeds import (
    CSV_WORDS,
    GGUF_WORDS,
    JSON_WORDS,
    RECIPE,
    YAML_WORDS,
    adapter_values,
    config_values,
    gguf_seeds,
    json_line_seeds,
    json_seeds,
    lines,
    manifest_seeds,
    one_object,
    pack_zstd,
    parquet_seeds,
    safetensors_seeds,
    table_seeds,
    tokenizer_values,
    values_of_rows,
)
from mutations import dumps, mutate, mutate_value

from topcoat.errors import TopcoatError

LIMIT_S = 2.0

MOST_SAID = 2000  # characters of one problem: a message must not be the file


@dataclass(frozen=True)
class Target:
    """Files named `name`, made from `seeds()` or by `make`, and read by `read(path)`."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], Any]
    words: tuple[bytes, ...] = ()
    values: Callable[[], Sequence[Any]] | None = None
    write: Callable[[Any], bytes] = dumps
    """Bytes of one of `values` after `mutate_value`: a third of the files are made so."""
    pack: Callable[[bytes], bytes] | None = None
    """Half of the files are malformed before they are packed, half behind."""

    def make(self, number: int) -> bytes:
        """File `number` of this target, always the same."""
        rng = random.Random(f"{self.name} {number}")
        if self.values is not None and rng.random() < 0.35:
            data = self.write(mutate_value(rng.choice(self.values()), rng))
            return mutate([data], rng, self.words) if rng.random() < 0.2 else data
        if self.pack is None:
            return mutate(self.seeds(), rng, self.words)
        if rng.random() < 0.5:
            return self.pack(mutate(self.seeds(), rng, self.words))
        return mutate([self.pack(seed) for seed in self.seeds()], rng)


def read_data(path: Path) -> list[Any]:
    """Rows, then every row as each kind of example."""
    from topcoat.data.row_formats import parse_rows, to_conversations
    from topcoat.data.rows import read_rows

    notes: list[str] = []
    rows = read_rows(path, notes)
    for kind in ("conversation", "pair", "label"):
        with suppress(TopcoatError):
            parse_rows(rows, "auto", kind, notes)
    with suppress(TopcoatError):
        to_conversations(rows, "prompt_completion", {"prompt": next(iter(rows[0].values), "x")}, notes)
    "\n".join(notes).encode()
    return rows


def read_json_lines(path: Path) -> None:
    """As `read_data`, and what is read is what Python's own reader reads."""
    rows = read_data(path)
    text = path.read_bytes().decode("utf-8-sig")
    expected = [json.loads(line.removeprefix("\ufeff")) for line in text.split("\n") if line.strip(" \t\r\ufeff")]
    assert repr([row.values for row in rows]) == repr(expected), "other rows than json.loads reads"


def read_gguf(path: Path) -> None:
    from topcoat.model.gguf_source import GgufSource

    source = GgufSource(path)
    _ = source.config, source.tensors, source.tokenizer()


def read_safetensors(path: Path) -> None:
    from topcoat.adapters.files import _read_tensors
    from topcoat.model.safetensors_source import read_tensors

    errors = []
    for read in (read_tensors, _read_tensors):
        try:
            read(path)
        except TopcoatError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_tokenizer(path: Path) -> None:
    from topcoat.model.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path.parent)
    with suppress(TopcoatError):
        tokenizer("Hello <|im_end|> wörld", add_special_tokens=False)


def read_recipe(path: Path) -> None:
    from topcoat.recipe.load import dump_recipe, load_recipe

    dump_recipe(load_recipe(path, check_files=False))


def read_manifest(path: Path) -> None:
    from topcoat.training.manifest import Damaged, Manifest

    try:
        Manifest.from_bytes(path.read_bytes())
    except Damaged as error:
        raise TopcoatError(str(error)) from error


def read_metrics_file(path: Path) -> None:
    from topcoat.training.metrics import read_metrics

    read_metrics(path)


def in_folder(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: read(path.parent)


def read_adapter_config(folder: Path) -> None:
    from topcoat.adapters.files import read_peft_config

    read_peft_config(folder)


def read_model_config(folder: Path) -> None:
    from topcoat.model.config_json import read_config

    read_config(folder)


TARGETS: dict[str, Target] = {
    "jsonl": Target("a.jsonl", json_line_seeds, read_json_lines, JSON_WORDS, values_of_rows, lines),
    "json": Target("a.json", json_seeds, read_data, JSON_WORDS, values_of_rows),
    "csv": Target("a.csv", lambda: table_seeds(","), read_data, CSV_WORDS),
    "tsv": Target("a.tsv", lambda: table_seeds("\t"), read_data, CSV_WORDS),
    "parquet": Target("a.parquet", parquet_seeds, read_data, (b"PAR1", b"\x15\x00", b"\x19\x1c")),
    "gz": Target("a.jsonl.gz", json_line_seeds, read_data, JSON_WORDS, pack=gzip.compress),
    "bz2": Target("a.jsonl.bz2", json_line_seeds, read_data, JSON_WORDS, pack=bz2.compress),
    "xz": Target("a.csv.xz", lambda: table_seeds(","), read_data, CSV_WORDS, pack=lzma.compress),
    "zst": Target("a.json.zst", json_seeds, read_data, JSON_WORDS, pack=pack_zstd),
    "gguf": Target("a.gguf", gguf_seeds, read_gguf, GGUF_WORDS),
    "safetensors": Target(
        "adapter_model.safetensors", safetensors_seeds, read_safetensors, (b'"shape"', b"F32", b"[0,")
    ),
    "adapter config": Target(
        "adapter_config.json", one_object(adapter_values), in_folder(read_adapter_config), JSON_WORDS, adapter_values
    ),
    "model config": Target(
        "config.json", one_object(config_values), in_folder(read_model_config), JSON_WORDS, config_values
    ),
    "tokenizer": Target("tokenizer.json", one_object(tokenizer_values), read_tokenizer, JSON_WORDS, tokenizer_values),
    "recipe": Target("recipe.yaml", lambda: [RECIPE], read_recipe, YAML_WORDS),
    "manifest": Target("manifest.json", manifest_seeds, read_manifest, JSON_WORDS),
    "metrics": Target(
        "metrics.jsonl", lambda: [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": "nan"}\n'], read_metrics_file
    ),
}


def packed(target: Target, data: bytes) -> bytes:
    """A whole file of the target."""
    return data if target.pack is None else target.pack(data)


def attempt(target: Target, folder: Path, number: int) -> tuple[str, float, bool]:
    """Try file `number`: (what failed or "", seconds of processor time, whether it was read)."""
    path = folder / target.name
    path.write_bytes(target.make(number))
    start, failure, was_read = time.process_time(), "", False
    try:
        target.read(path)
        was_read = True
    except TopcoatError as error:
        longest = max((problem.what for problem in error.problems), key=len)
        if not longest.strip() or len(longest) > MOST_SAID:
            failure = f"a message of {len(longest)} characters: {longest[:200]}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what the fuzzer is for; a panic of a Rust library is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "topcoat" in frame.filename]
        mine = f"{Path(ours[-1].filename).name} {ours[-1].lineno}" if ours else ""
        failure = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name} {where.lineno}; {mine})"
    taken = time.process_time() - start
    return failure or ("" if taken < LIMIT_S else f"took {taken:.1f} s"), taken, was_read


def attempt_many(name: str, folder: Path, first: int, count: int) -> dict[str, Any]:
    """Files first .. first + count - 1 of a target. The number in hand stands in FOLDER/now, for a death by signal."""
    failures, slowest, read = [], 0.0, 0
    for seed in TARGETS[name].seeds():  # imports what the reader needs, and shows that what is malformed was whole
        path = folder / TARGETS[name].name
        path.write_bytes(packed(TARGETS[name], seed))
        TARGETS[name].read(path)
    for number in range(first, first + count):
        (folder / "now").write_text(str(number))
        failure, taken, was_read = attempt(TARGETS[name], folder, number)
        slowest, read = max(slowest, taken), read + was_read
        if failure:
            failures.append([number, failure])
    peak = _peak_kb()
    return {"tried": count, "read": read, "slowest_s": slowest, "peak_kb": peak, "failures": failures}


def _peak_kb() -> int:
    """Most KiB of this program. ru_maxrss would begin with what the process that started it had, for Linux keeps it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(attempt_many(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
