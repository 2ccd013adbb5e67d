"""Balance: labels that are rare or everywhere, and rows so long that they are most of the training."""

from __future__ import annotations

from collections import Counter

from topcoat.data.checks.corpus import Corpus, main_spellings
from topcoat.data.checks.finding import Finding, count
from topcoat.units import show_percent

MOST, RATIO, RARE, MOST_NAMED = 0.9, 20, 5, 5
LONGEST_SHARE, LONGEST_TEXT, LONGEST_FROM = 0.01, 1 / 3, 200


def class_imbalance(corpus: Corpus) -> list[Finding]:
    labels = Counter[str]()
    spelled = main_spellings(corpus.labels or {})
    for label, main in spelled.items():
        labels[main] += (corpus.labels or {})[label]
    if len(labels) < 2:
        return []
    (top, most), *_, (last, fewest) = labels.most_common()
    share = most / len(corpus)
    frequent = min(count for count in labels.values() if count >= min(RARE, most))
    if share <= MOST and most <= RATIO * frequent:
        return []
    what = f"label {top!r} stands on {show_percent(share)} of the rows ({most:,}), {last!r} on {fewest:,}"
    why = "always saying the frequent label is nearly right, and that is what the model will learn"
    fix = "add rows of the rare labels, or take fewer of the frequent one; score by label"
    few = {label for label, n in labels.items() if label != top and (share > MOST or most > RATIO * n)}
    said = {at: spelled[label] for at, label in enumerate(_labels_of(corpus)) if spelled.get(label) in few}
    details = {at: f"{label!r}: {count(labels[label], 'row', 'rows')}" for at, label in said.items()}
    return [Finding(what, why, fix, list(details), details)]


def _labels_of(corpus: Corpus) -> list[str]:
    """The label of each row, spelled as in `corpus.labels`."""
    return corpus.replies if corpus.reading.table is not None else [reply.strip() for reply in corpus.replies]


def rare_labels(corpus: Corpus) -> list[Finding]:
    if corpus.labels is None:
        return []
    main = main_spellings(corpus.labels)
    rare = {label: count for label, count in corpus.labels.items() if count < RARE and main[label] == label}
    if not rare:
        return []
    rows = [at for at, reply in enumerate(corpus.replies) if reply.strip() in rare]
    details = {at: f"{corpus.replies[at].strip()!r}: {rare[corpus.replies[at].strip()]} rows" for at in rows}
    named = ", ".join(f"{label!r} {n:,}" for label, n in list(rare.items())[:MOST_NAMED])
    more = f" and {len(rare) - MOST_NAMED:,} more" if len(rare) > MOST_NAMED else ""
    what = f"{len(rare):,} of {len(corpus.labels):,} labels have fewer than {RARE} rows: {named}{more}"
    why = "a label is not learned from so few rows, or it is another one misspelt"
    return [Finding(what, why, "add rows of these labels, or mend their spelling", rows, details)]


def length_imbalance(corpus: Corpus) -> list[Finding]:
    n = len(corpus)
    if n < LONGEST_FROM:
        return []
    sizes = [len(prompt) + len(reply) for prompt, reply in zip(corpus.prompts, corpus.replies, strict=True)]
    longest = sorted(range(n), key=lambda at: -sizes[at])[: max(1, int(LONGEST_SHARE * n))]
    share = sum(sizes[at] for at in longest) / max(1, sum(sizes))
    if share <= LONGEST_TEXT:
        return []
    what = f"the longest {len(longest):,} rows hold {show_percent(share)} of all text"
    why = "loss is counted by token: these few rows are most of what is learned"
    details = {at: f"{sizes[at]:,} characters" for at in longest}
    return [Finding(what, why, "split or shorten them, or set data.max_length", sorted(longest), details)]
