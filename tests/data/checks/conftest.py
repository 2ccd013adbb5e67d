"""corpus(rows): rows as the checks see them."""

import pytest

from topcoat.data.checks.corpus import Corpus, corpus_of
from topcoat.data.checks.reading import Reading
from topcoat.data.rows import Row


def _corpus(rows: list[dict], file: str = "train.jsonl", form: str = "auto") -> Corpus:
    return corpus_of([Row(row, file, line) for line, row in enumerate(rows, start=1)], Reading(form))


@pytest.fixture(scope="session")
def corpus():
    return _corpus
