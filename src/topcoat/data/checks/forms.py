"""Forms of answers: a file whose answers all have one form, but for a few; and one whose answers are of two forms.

A form that nine of ten answers have is the file's, and those that lack it are named. Between a tenth and nine tenths
the file has two forms, which is right where the prompt says which one is wanted. It does if one word tells them apart:
it stands with at least six tenths more of the rows of one form than of the other. It does, too, if naive Bayes over the
words of every second row puts 85 % of the other rows on their side (the mean of both sides): one form belongs to a few
tasks. A tenth is far above what answers have by chance: in general chat and instruction data under 1 in 50 are
JSON or end in a result line, and a file with fewer than a tenth of them is prose, which nobody reads by its form.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.units import show_percent

MOST, SECOND, FORMS_FROM, SECOND_FROM = 0.9, 0.1, 20, 5
WORD_APART, RIGHT, OFTEN = 0.6, 0.85, 0.05
LOOKED_AT, SAMPLE = 2000, 2000  # characters of a text, rows of each form
_WORD = re.compile(r"\w+")


def _is_json(text: str) -> bool:
    text = text.strip()
    if not (text.startswith(("{", "[")) and text.endswith(("}", "]"))):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


FENCE = "a fenced code block"
FORMS: dict[str, Callable[[str], bool]] = {
    "JSON": _is_json,
    FENCE: lambda text: text.strip().startswith("```"),
    "a result line (#### …)": lambda text: "####" in text,
    "a <think> block": lambda text: text.lstrip().startswith("<think>"),
}


def mixed_formats(corpus: Corpus) -> list[Finding]:
    if len(corpus) < FORMS_FROM or corpus.form == "text":
        return []
    found = []
    for name, has in FORMS.items():
        last = [bool(turns) and has(turns[-1]) for turns in corpus.answers]
        share = sum(last) / len(last)
        if MOST <= share < 1:
            rows = [at for at, is_so in enumerate(last) if not is_so]
            why = "what reads the answers expects the form; a few that break it teach the model to break it"
            what = f"{count(len(rows), 'answer lacks', 'answers lack')} {name}, which {sum(last):,} others have"
            found.append(Finding(what, why, "rewrite these answers, or leave them out", rows))
        elif SECOND <= share < MOST and name != FENCE:  # talk about code has answers with and without words in front
            found += _two_forms(corpus, name, last)
    return found


def _two_forms(corpus: Corpus, name: str, last: Sequence[bool]) -> list[Finding]:
    """Rows with tools answer with a call, which is JSON, or with words, as they should: they do not count."""
    looked = [at for at in range(len(last)) if at not in corpus.with_tools]
    with_it, without = [at for at in looked if last[at]], [at for at in looked if not last[at]]
    fewer = min(with_it, without, key=len)
    if len(fewer) < max(SECOND_FROM, SECOND * len(looked)) or _tells_apart(corpus, with_it, without):
        return []
    share = show_percent(len(with_it) / len(looked))
    what = f"the answers are of two forms: {share} have {name} ({len(with_it):,}), {len(without):,} do not"
    why = "no word of the prompts says which is wanted, so the model learns to toss a coin"
    details = {at: f"{'has' if last[at] else 'lacks'} {name}" for at in fewer}
    fix = "write all answers in one form, or say in the prompts which is wanted"
    return [Finding(what, why, fix, fewer, details, drop=[])]


def _tells_apart(corpus: Corpus, some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether a word stands with many more of `some` rows than of `others`, or of these; or all words together tell."""
    one, other = _words(corpus, some), _words(corpus, others)
    shares = [_shares(one), _shares(other)]
    if any(abs(shares[0].get(word, 0) - shares[1].get(word, 0)) >= WORD_APART for word in {*shares[0], *shares[1]}):
        return True
    score = _score(one[::2], other[::2])
    found = sum(score(row) > 0 for row in one[1::2]), sum(score(row) < 0 for row in other[1::2])
    return found[0] / len(one[1::2]) + found[1] / len(other[1::2]) >= 2 * RIGHT


def _words(corpus: Corpus, rows: Sequence[int]) -> list[set[str]]:
    """The words of prompt and system turn of the rows, of an even sample of them."""
    sample = rows[:: -(-len(rows) // SAMPLE)]
    texts = [(corpus.prompts[at], *corpus.sides.rows[at]) for at in sample]
    return [{word for text in row for word in _WORD.findall(text[:LOOKED_AT].casefold())} for row in texts]


def _shares(rows: Sequence[set[str]]) -> dict[str, float]:
    """Word -> share of the rows that have it."""
    return {word: n / len(rows) for word, n in Counter(word for row in rows for word in row).items()}


def _score(some: Sequence[set[str]], others: Sequence[set[str]]) -> Callable[[set[str]], float]:
    """score(words of a row): log of how much likelier they are among `some` rows than among `others`.

    Naive Bayes over the words that stand in a twentieth of the rows of one side at least; those that do not stand in a
    row speak, too.
    """
    one, other = (Counter(word for row in rows for word in row) for rows in (some, others))
    there, missing = dict[str, float](), 0.0
    for word in one.keys() | other.keys():
        if max(one[word] / len(some), other[word] / len(others)) >= OFTEN:
            p, q = (one[word] + 1) / (len(some) + 2), (other[word] + 1) / (len(others) + 2)
            there[word] = math.log(p / q) - math.log((1 - p) / (1 - q))
            missing += math.log((1 - p) / (1 - q))
    return lambda row: missing + sum(there.get(word, 0) for word in row)
