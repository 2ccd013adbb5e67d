"""check_files: a training file, held against a validation file and benchmarks, with what a recipe knows besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from topcoat.data.checks.corpus import Most, Setting, read_benchmark, read_corpus
from topcoat.data.checks.reading import reading_of
from topcoat.data.checks.verdict import Verdict, check
from topcoat.data.progress import Tell, silent
from topcoat.data.settings import DataSettings


def check_files(
    settings: DataSettings,
    *,
    objective: str = "sft",
    benchmarks: Sequence[Path] = (),
    setting: Callable[[int], Setting] = lambda rows: Setting(),
    most: Most | None = None,
    cheap_only: bool = False,
    tell: Tell = silent,
) -> Verdict:
    """The checks over the training files, read as a run that learns `objective` does; with `most`, over their first
    rows and the first of the validation file, and what is not looked at is told by `is_cut` of each corpus.

    `setting` is called with the number of rows.

    Raises:
        TopcoatError: a file cannot be read, or a row is none of its format.
    """
    reading = reading_of(settings, objective, tell)
    files = [file for file, _ in settings.train_files]
    corpus = read_corpus(files, reading, most=most, tell=tell)
    if isinstance(settings.validation, str):
        corpus.against = read_corpus([settings.validation], reading, most=most, tell=tell)
    corpus.benchmarks = [read_benchmark(path) for path in benchmarks]
    corpus.setting = setting(len(corpus))
    return check(corpus, settings.checks, cheap_only=cheap_only)
