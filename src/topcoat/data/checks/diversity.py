"""Diversity: the same again, almost the same again, and the same with other names in it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from topcoat.data.checks.clusters import cluster
from topcoat.data.checks.corpus import PLAIN, Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.data.labels import LABELLED
from topcoat.data.near import Groups, near_pairs
from topcoat.units import show_percent

NEAR = 0.8  # Jaccard overlap of 5-byte shingles from which two rows are near-duplicates
OPENING_WORDS, OPENING_SHARE, OPENING_FROM = 5, 0.2, 20
TEMPLATE_ROWS, TEMPLATE_SHARE = 5, 0.03
TRIPLES_WORDS, DISTINCT = 10_000, 0.35
TOPIC_SHARE, TOPIC_FROM = 0.6, 50
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d[\d.,:/%-]*")
_NAME = re.compile(r"(?<=[^\W\d_] )\b[^\W\d_a-zß-ÿ][\w'’-]*|\"[^\"\n]{1,60}\"|'[^'\n]{1,60}'|`[^`\n]{1,60}`|\d+")


def exact_duplicates(corpus: Corpus) -> list[Finding]:
    found = {at: first for at, first in enumerate(corpus.first) if first != at}
    if not found:
        return []
    details = {at: f"same as {corpus.named(first)}" for at, first in found.items()}
    what = count(len(found), "row repeats an earlier row", "rows repeat an earlier row")
    why = "a row that stands twice weighs twice, and its copy in the held-out part makes the score too good"
    return [Finding(what, why, "leave the copies out", list(found), details)]


def near_duplicates(corpus: Corpus) -> list[Finding]:
    kept = [at for at, first in enumerate(corpus.first) if at == first]  # copies are another check's
    groups = Groups(len(kept))
    texts = [corpus.whole[at] for at in kept]
    for a, b, _ in near_pairs(texts, NEAR, groups=groups, tell=lambda done, n: corpus.tell("near-duplicates", done, n)):
        if corpus.contexts[kept[a]] == corpus.contexts[kept[b]]:
            groups.join(a, b)
    found = {kept[at]: kept[root] for at, root in enumerate(groups.roots()) if root != at}
    if not found:
        return []
    details = {at: f"nearly {corpus.named(other)}" for at, other in found.items()}
    why = "near-copies add little to learn, and one in the held-out part makes the score too good"
    if corpus.setting.held_out:
        why += f"; this recipe holds out {show_percent(corpus.setting.held_out)} of the rows by chance"
    fix = "leave them out, or keep them together with `topcoat data split`"
    what = count(len(found), "row nearly repeats an earlier row", "rows nearly repeat an earlier row")
    return [Finding(what, why, fix, sorted(found), details)]


def repeated_templates(corpus: Corpus) -> list[Finding]:
    """Rows whose text is the same once numbers, names and quotations are blanked."""
    if corpus.labels is not None or len(corpus) < 2 * TEMPLATE_ROWS:
        return []
    shapes: dict[str, list[int]] = defaultdict(list)
    for at in sorted(set(corpus.first)):
        text = f"{corpus.prompts[at][:2000]}\n{corpus.replies[at][:2000]}"
        shapes[" ".join(_NAME.sub("_", text).split())].append(at)
    least = max(TEMPLATE_ROWS, TEMPLATE_SHARE * len(corpus))
    big = [rows for rows in shapes.values() if len(rows) >= least]
    if not big:
        return []
    rows = sorted(at for group in big for at in group)
    details = {at: f"as {corpus.named(group[0])}" for group in big for at in group[1:]}
    what = f"{len(rows):,} rows come from {len(big):,} template{'s' * (len(big) > 1)}: only numbers and names differ"
    why = "the model learns the template's words, and fails on a prompt that says it otherwise"
    return [Finding(what, why, "vary the wording, or keep a few rows of each template", rows, details)]


def repeated_openings(corpus: Corpus) -> list[Finding]:
    if corpus.labels is not None or corpus.form == "text" or len(corpus) < OPENING_FROM:
        return []
    openings: dict[str, list[int]] = defaultdict(list)
    for at, reply in enumerate(corpus.replies):
        words = _WORD.findall(reply[:200])
        if len(words) > 2 * OPENING_WORDS:
            openings[" ".join(words[:OPENING_WORDS]).casefold()].append(at)
    said, rows = max(openings.items(), key=lambda item: len(item[1]), default=("", []))
    if len(rows) < OPENING_SHARE * len(corpus):
        return []
    what = f"{show_percent(len(rows) / len(corpus))} of the answers begin with “{said} …”"
    why = "the model will begin nearly every answer so, whatever was asked"
    return [Finding(what, why, "rewrite most of these openings", rows)]


def distinct_triples(corpus: Corpus) -> float | None:
    """Distinct word triples / all of them, in the first 10,000 words of the answers; None where there are fewer."""
    words: list[str] = []
    for reply in () if corpus.form in LABELLED else corpus.replies[:: max(1, len(corpus) // 2000)]:
        words += _WORD.findall(reply[:4000].casefold())
        if len(words) >= TRIPLES_WORDS:
            triples = Counter(zip(words, words[1:TRIPLES_WORDS], words[2:TRIPLES_WORDS], strict=False))
            return len(triples) / triples.total()
    return None


def few_distinct_ngrams(corpus: Corpus) -> list[Finding]:
    share = None if corpus.labels is not None else distinct_triples(corpus)
    records = sum(reply.lstrip()[:1] in ("{", "[") for reply in corpus.replies)  # their keys repeat, and should
    if share is None or share >= DISTINCT or records > len(corpus) / 2:
        return []
    what = f"only {show_percent(share)} of the word triples in the answers are different ones"
    why = "plain prose has more than half: the answers are variations of few sentences"
    return [Finding(what, why, "add answers in other words, on other things")]


def one_topic(corpus: Corpus) -> list[Finding]:
    if corpus.labels is not None or corpus.form in PLAIN or len(corpus) < TOPIC_FROM:
        return []
    found = cluster(corpus.openings)
    if not found or found[0].share < TOPIC_SHARE:
        return []
    top = found[0]
    what = f"{show_percent(top.share)} of the instructions are of one kind: {', '.join(top.terms)}"
    why = "the adapter will treat every prompt as one of these"
    return [Finding(what, why, "if it should do more than this one task, add rows of other kinds")]
