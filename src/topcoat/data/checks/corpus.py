"""Corpus: the rows of one file as the checks see them. Texts only, so that 100,000 rows stay well under 1 GB.

Every row has its prompt (what the users said), its answers (what the assistant said, turn by turn) and its opening (the
first user turn). System turns and tools are put to the side. Plain text is one answer without a prompt.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from topcoat.data.checks.reading import Reading
from topcoat.data.checks.sides import Sides, side_texts, uses_tools
from topcoat.data.conversation import BadRow, Conversation
from topcoat.data.formats import unpaired
from topcoat.data.labels import LABELLED
from topcoat.data.near import normal
from topcoat.data.preferences import PreferencePair
from topcoat.data.progress import Tell, silent
from topcoat.data.row_formats import ROW_FORMATS, Parsed, recognise_row
from topcoat.data.rows import Row, iter_rows, place
from topcoat.errors import Problem, TopcoatError

_JOINTS = re.compile(r"[\s_]+|(?<=[^\W\d])-(?=[^\W\d])")
LABEL_LENGTH = 60  # characters of the longest label
LABEL_SUPPORT = 3  # rows a label has on average
CHUNK, CHUNK_BYTES = 2048, 2**23  # rows, and bytes of their texts, that are parsed at once
PLAIN = ("text", *LABELLED)
"""Forms whose rows are plain texts: no template is put around them, and no answer is written to them."""
MOST_CHARACTERS = 10**6  # of a text that is looked at: some 250,000 tokens
CLIPPED = "only the beginning was looked at"


def plain_label(label: str) -> str:
    """Without case, blanks, low lines, hyphens between letters and outer marks: "C++" and "-1" stay what they are."""
    plain = _JOINTS.sub("", unicodedata.normalize("NFKC", label).casefold().strip(" .,;:!?\"'"))
    return plain or label.strip()


class Most(NamedTuple):
    """How much of the files is looked at: the first rows, so many of them and of so many bytes of text."""

    rows: int
    text_bytes: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows and how many of them are trained, of all rows or of an even sample of them."""

    rows: list[int]
    tokens: list[int]
    targets: list[int]
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row -> why a run refuses it, and what would help. Such rows are not among `rows`."""

    @property
    def counted(self) -> int:
        """Rows that were looked at."""
        return len(self.rows) + len(self.refused)


@dataclass
class Setting:
    """What is known besides the rows, where a recipe tells it."""

    lengths: Lengths | None = None
    max_length: int | None = None
    context_length: int = sys.maxsize
    overlong: str = "error"
    packing: bool = True
    fill: float | None = None
    """Share of the positions the run will compute that hold a token."""
    target_tokens: int | None = None
    """Of all rows."""
    adapter_parameters: int | None = None
    adapter_rank: int | None = None
    held_out: float | None = None
    """Share of the rows that the run will hold out by itself."""
    validation_tokens: list[int] = field(default_factory=list)
    """Tokens of each row of the validation file."""
    validation_refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row of the validation file -> why a run refuses it, and what would help."""
    problems: list[Problem] = field(default_factory=list)
    """What else a run refuses the data for."""


@dataclass
class Corpus:
    """Texts of the rows of one file (or of several, as a mixture has), and of the files they are held against."""

    file: str
    form: str = ""
    reading: Reading = field(default_factory=Reading)
    lines: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    openings: list[str] = field(default_factory=list)
    answers: list[tuple[str, ...]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    """Equal where system messages and tools are: only such rows can repeat or contradict each other."""
    sides: Sides = field(default_factory=Sides)
    with_tools: set[int] = field(default_factory=set)
    """Rows with tools, calls of them or what they said."""
    marks: dict[int, bool] = field(default_factory=dict)
    """Row -> what a label of 0 or 1 beside its answer says, if it tells wanted answers from others."""
    rejected: dict[int, str] = field(default_factory=dict)
    """Row -> the worse answer of a preference pair, which is trained away from."""
    doubts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Row -> what is odd about it, though it can be trained."""
    setting: Setting = field(default_factory=Setting)
    against: Corpus | None = None
    """The validation rows."""
    benchmarks: list[Corpus] = field(default_factory=list)
    tell: Tell = silent

    notes: list[str] = field(default_factory=list)
    """What reading the files brought up, such as a byte-order mark."""
    starts: list[tuple[int, str]] = field(default_factory=list)
    """Where each file's rows begin, and its path."""
    text_bytes: int = 0
    """Of the rows as they were read."""
    is_cut: bool = False
    """Whether rows follow that were not looked at."""

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, row: Row, parsed: Parsed, label: str | None = None) -> None:
        """One more row. Of preference rows the chosen answer counts, of answers marked wanted or not the answer; a
        text with a `label` is asked, and the label is its answer."""
        if not self.starts or self.starts[-1][1] != row.file:
            self.starts.append((len(self), row.file))
        self.lines.append(row.line)
        if parsed.doubts:
            self.doubts[len(self.lines) - 1] = parsed.doubts
        text = None
        if isinstance(parsed, Conversation):
            messages, text = parsed.messages or [], parsed.text
        else:
            messages = parsed.prompt + (parsed.chosen if isinstance(parsed, PreferencePair) else parsed.completion)
        said = [m.get("content") or "" for m in messages if m["role"] == "user"]
        answers = tuple(_said(m) for m in messages if m["role"] == "assistant") if text is None else (text,)
        if label is not None:
            said, answers = list(answers), (label,)
        prompt, opening = "\n\n".join(said), said[0] if said else ""
        sides = side_texts(messages, parsed)
        if max(map(len, (prompt, *answers, *sides))) > MOST_CHARACTERS:
            self.doubts[len(self.lines) - 1] = (
                *parsed.doubts,
                f"of texts over {MOST_CHARACTERS:,} characters {CLIPPED}",
            )
        self.sides.add(sides, MOST_CHARACTERS)
        if uses_tools(messages, parsed):
            self.with_tools.add(len(self.lines) - 1)
        self.prompts.append(prompt[:MOST_CHARACTERS])
        self.openings.append(opening[:MOST_CHARACTERS])
        self.answers.append(tuple(answer[:MOST_CHARACTERS] for answer in answers))
        if isinstance(parsed, PreferencePair):
            self.rejected[len(self.answers) - 1] = "\n".join(
                _said(m) for m in parsed.rejected if m["role"] == "assistant"
            )
        system = tuple(m.get("content") or "" for m in messages if m["role"] == "system")
        self.contexts.append(hash((system, json.dumps(parsed.tools, sort_keys=True) if parsed.tools else "")))
        if isinstance(parsed, Conversation) and text is None:
            mark = unpaired.numbered(self.reading.columns.apply(row.values))
            if mark is not None:
                self.marks[len(self.lines) - 1] = mark

    def place(self, at: int) -> str:
        """Such as "train.jsonl line 17"."""
        return place(self.file_of(at), self.lines[at])

    def file_of(self, at: int) -> str:
        """The path of the file the row stands in."""
        return self.starts[bisect_right(self.starts, at, key=lambda start: start[0]) - 1][1]

    def named(self, at: int) -> str:
        """Such as "line 17", with the file in front where there are several."""
        return self.place(at) if len(self.starts) > 1 else f"line {self.lines[at]:,}"

    @cached_property
    def replies(self) -> list[str]:
        """All that the assistant says in each row."""
        return ["\n".join(turns) if len(turns) != 1 else turns[0] for turns in self.answers]

    @cached_property
    def written(self) -> list[str]:
        """The replies, with the worse answer behind the better one in preference pairs: all that a run reads."""
        if not self.rejected:
            return self.replies
        return [
            f"{reply}\n{self.rejected[at]}" if at in self.rejected else reply for at, reply in enumerate(self.replies)
        ]

    @cached_property
    def whole(self) -> list[bytes]:
        """Prompt and reply of each row, in the normal form texts are compared in."""
        return [normal(f"{prompt}\n{reply}") for prompt, reply in zip(self.prompts, self.replies, strict=True)]

    @cached_property
    def questions(self) -> list[bytes]:
        """The opening of each row (of plain text, the text), in normal form."""
        pairs = zip(self.openings, self.replies, strict=True)
        return [normal(opening or reply) for opening, reply in pairs]

    @cached_property
    def first(self) -> list[int]:
        """For each row the first that equals it, in normal form and context: itself, mostly."""
        found: dict[tuple[bytes, int], int] = {}
        return [found.setdefault(key, at) for at, key in enumerate(zip(self.whole, self.contexts, strict=True))]

    @cached_property
    def labels(self) -> dict[str, int] | None:
        """Label -> rows, the most frequent first, if the rows are a classification; else None.

        They are where the objective says so (labels without a row count, too); and where every answer is one short
        line and there are few different ones: at most a third as many as rows, and at most 500.
        """
        n = len(self)
        if self.reading.table is not None:
            counts = Counter(self.replies)
            return dict(counts.most_common()) | {name: 0 for name in self.reading.table if name not in counts}
        if self.form in PLAIN:
            return None
        if n < 2 * LABEL_SUPPORT or any(len(turns) != 1 for turns in self.answers):
            return None
        short = sum(len(reply) <= LABEL_LENGTH and "\n" not in reply.strip() for reply in self.replies)
        if short < 0.98 * n:
            return None
        counts = Counter(reply.strip() for reply in self.replies)
        if len(counts) > min(500, n / LABEL_SUPPORT):
            return None
        return dict(counts.most_common())


def main_spellings(labels: Mapping[str, int]) -> dict[str, str]:
    """Each label -> the most frequent spelling of it; `labels` come with the most frequent first."""
    main: dict[str, str] = {}
    return {label: main.setdefault(plain_label(label), label) for label in labels}


def read_corpus(files: Sequence[str], reading: Reading, *, most: Most | None = None, tell: Tell = silent) -> Corpus:
    """The first rows of the files, all of them by default, read in pieces so that only the texts are held.

    Raises:
        TopcoatError: a file cannot be read, or a row is none of its format.
    """
    corpus = Corpus(files[0], reading=reading, tell=tell)
    for file in files:
        if not corpus.is_cut:
            _take_in(corpus, iter_rows(file, corpus.notes), most)
    return corpus


def corpus_of(rows: Iterable[Row], reading: Reading, tell: Tell = silent) -> Corpus:
    """The corpus of `rows` (at least one). Raises TopcoatError for rows that are none of the format."""
    corpus = Corpus("", reading=reading, tell=tell)
    _take_in(corpus, rows, None)
    corpus.file = corpus.starts[0][1]
    return corpus


def _take_in(corpus: Corpus, rows: Iterable[Row], most: Most | None) -> None:
    piece: list[Row] = []
    taken = corpus.text_bytes
    present: set[str] = set()
    reading = corpus.reading
    form = reading.form

    def take() -> None:
        nonlocal form, taken
        file = piece[0].file
        present.update(name for row in piece for name in row.values)
        try:
            form, found = reading.parse(piece, form)
        except TopcoatError:
            reading.columns.require(present, file)  # what the recipe names and is not there is the better word
            raise
        for row, parsed, label in zip(piece, found, reading.said_of(piece), strict=True):
            corpus.add(row, parsed, label)
        corpus.form = reading.named(form) if len(corpus.starts) == 1 else corpus.form
        corpus.tell(f"reading {Path(file).name}", len(corpus), 0)
        piece.clear()
        taken = corpus.text_bytes

    for row in rows:
        if most is not None and (len(corpus) + len(piece) >= most.rows or corpus.text_bytes >= most.text_bytes):
            corpus.is_cut = True
            break
        piece.append(row)
        corpus.text_bytes += sum(map(sys.getsizeof, _texts(row.values)))
        if len(piece) >= CHUNK or corpus.text_bytes - taken >= CHUNK_BYTES:
            take()
    if piece:
        take()


def _said(message: dict[str, Any]) -> str:
    """All that an assistant's turn trains: what it thinks, says and calls."""
    calls = message.get("tool_calls")
    parts = [message.get("reasoning_content"), message.get("content"), json.dumps(calls) if calls else None]
    return "\n".join(part for part in parts if part)


QUESTION_FIELDS = ("question", "problem", "instruction", "prompt", "input", "query", "text", "sentence")


def read_benchmark(path: str | Path) -> Corpus:
    """Rows of any shape: in a known format their prompts, else the field that looks like the question, else all text.

    Raises:
        TopcoatError: the file cannot be read.
    """
    corpus = Corpus(str(path), form="benchmark", starts=[(0, str(path))])
    for row in iter_rows(path):
        text = _question(row)
        corpus.lines.append(row.line)
        corpus.prompts.append(text)
        corpus.openings.append(text)
        corpus.answers.append(())
    return corpus


def _question(row: Row) -> str:
    form = recognise_row(row)
    if form is not None and form != "text" and ROW_FORMATS[form].kind == "conversation":
        try:
            messages = ROW_FORMATS[form].to_conversation(row).messages or []
        except BadRow:
            messages = []
        said = [m.get("content") or "" for m in messages if m["role"] == "user"]
        if said:
            return said[0]
    named = [row.values[name] for name in QUESTION_FIELDS if isinstance(row.values.get(name), str)]
    return "\n".join(named[:2]) or "\n".join(_texts(row.values))


def _texts(value: object) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _texts(item)]
