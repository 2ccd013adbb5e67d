"""Forms of answers: a file whose answers all have one form, but for a few; and one whose answers are of two forms.

A form that nine of ten answers have is the file's, and those that lack it are named. Between a tenth and nine tenths
the file has two forms, which is right where the prompt says which one is wanted. It does if some word tells them apart:
one that stands with at least six tenths more of the rows of one form than of the other. A tenth is far above what
answers have by chance: in general chat and instruction data under 1 in 50 are JSON or end in a result line, and a file
with fewer than a tenth of them is one of prose, which nobody reads by its form.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.units import show_percent

MOST, SECOND, FORMS_FROM, SECOND_FROM = 0.9, 0.1, 20, 5
TELLS_APART, LOOKED_AT, SAMPLE = 0.6, 2000, 2000
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
    """Whether a word of prompt or system turn stands with many more of `some` rows than of `others`, or of these."""
    one, other = _shares(corpus, some), _shares(corpus, others)
    return any(abs(one.get(word, 0) - other.get(word, 0)) >= TELLS_APART for word in one.keys() | other.keys())


def _shares(corpus: Corpus, rows: Sequence[int]) -> dict[str, float]:
    """Word -> share of the rows, an even sample of them, whose prompt or system turn has it."""
    sample = rows[:: -(-len(rows) // SAMPLE)]
    found = Counter[str]()
    for at in sample:
        texts = (corpus.prompts[at], *corpus.sides.rows[at])
        found.update({word for text in texts for word in _WORD.findall(text[:LOOKED_AT].casefold())})
    return {word: n / len(sample) for word, n in found.items()}
