"""Contradictions: one prompt with two labels, two results, a yes and a no, or two short answers in other words.

Labels and marked results differ or do not. Short answers in free text are held against each other by their words, in
lower case and without articles and marks: where the words of one are all among those of the other ("Canberra",
"It is Canberra, Australia"), they agree. Prompts that ask for any one of many things ("Name a fruit"), or have been
answered in more than ten ways, are passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from topcoat.data.checks.corpus import LABEL_LENGTH, Corpus, plain_label
from topcoat.data.checks.finding import Finding
from topcoat.data.labels import LABELLED

MOST_ANSWERS = 10
SHORT_WORDS = 3  # of an answer that can contradict another: longer ones say the same, or parts of it, in many ways
_RESULT = re.compile(r"####\s*(-?[\d.,/]+)\s*$|\\boxed\{([^{}]+)\}")
_YES_NO = re.compile(r"\W*(yes|no|true|false)\b", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_FILLERS = frozenset(
    {"a", "an", "the", "it", "is", "its", "it's", "was", "are", "they", "that", "this", "in", "of", ""}
)
_NEGATIONS = frozenset({"not", "no", "never", "isn't", "none"})
_ANY = re.compile(
    r"\b(?:random\w*|any|suggest\w*|propose|recommend\w*|invent|imagine|creat\w+|generat\w+|writ(?:e|ing)|compose|draft"
    r"|rewrite|rephrase|paraphrase|summari[sz]e|translate|example|synonym|antonym|rhym\w+|joke|title|headline|slogan"
    r"|come up with|think of|make up|continue|complete|roll|flip|your|you)\b"
    r"|\b(?:name|give|list|tell|pick|choose|say|find|provide)(?: me| us)? (?:an?|one|some|two|three|four|five|\d+)\b",
    re.IGNORECASE,
)
Answers = dict[tuple[str, ...], dict[str, list[int]]]
"""What was asked, with all that stands in front -> an answer, in the form they are compared in -> its rows."""


def contradictions(corpus: Corpus) -> list[Finding]:
    """The same conversation up to an answer that is a label, a result, a yes or no, or short, and is another one."""
    marked: Answers = defaultdict(lambda: defaultdict(list))
    free: Answers = defaultdict(lambda: defaultdict(list))
    is_label = corpus.labels is not None or corpus.form in LABELLED
    for at, turns in enumerate(corpus.answers):
        prompt = corpus.prompts[at]
        if not turns or not prompt.strip():
            continue
        verdict = _verdict(turns[-1], is_label)
        kept = verdict if verdict is not None else _short_answer(turns[-1])
        if kept is not None:
            asked = (str(corpus.contexts[at]), " ".join(prompt.split()), *turns[:-1])
            (marked if verdict is not None else free)[asked][kept].append(at)
    return [*_marked(corpus, marked), *_free(corpus, free)]


def _marked(corpus: Corpus, answers: Answers) -> list[Finding]:
    details: dict[int, str] = {}
    drop: list[int] = []
    for found in answers.values():
        if len(found) > 1:
            ranked = sorted(found.values(), key=len, reverse=True)
            details |= _said(corpus, ranked)
            minority = ranked[1:] if len(ranked[0]) > len(ranked[1]) else ranked
            drop += [at for rows in minority for at in rows]
    if not details:
        return []
    what = f"{len(details):,} rows answer the same prompt in different ways"
    why = "at least one of the answers is wrong, and the model learns to guess"
    fix = "decide which is right (--fix keeps what most of them say, and none where they tie)"
    return [Finding(what, why, fix, sorted(details), details, drop=sorted(drop))]


def _free(corpus: Corpus, answers: Answers) -> list[Finding]:
    details: dict[int, str] = {}
    for (_, prompt, *_), found in answers.items():
        if 1 < len(found) <= MOST_ANSWERS and not _ANY.search(prompt) and _apart(list(found)):
            details |= _said(corpus, list(found.values()))
    if not details:
        return []
    what = f"{len(details):,} rows give other short answers to the same prompt"
    why = "one of the answers is wrong, or the prompt leaves out what decides: the model learns to guess"
    fix = "decide which is right, or say in the prompt what decides (--fix leaves these rows: they may mean the same)"
    return [Finding(what, why, fix, sorted(details), details, drop=[])]


def _said(corpus: Corpus, answers: Sequence[Sequence[int]]) -> dict[int, str]:
    """What is said of each row of answers that contradict each other."""
    first = min(at for rows in answers for at in rows)
    return {
        at: f"“{_cut(corpus.answers[at][-1])}”, {corpus.named(first)} asks the same" for rows in answers for at in rows
    }


def _verdict(answer: str, is_label: bool) -> str | None:
    """What can contradict another answer: a label, a marked result, a leading yes or no; None in free text."""
    if is_label:
        return plain_label(answer) or None
    if match := _RESULT.search(answer):
        return "= " + (match[1] or match[2]).replace(",", "").rstrip(".")
    if match := _YES_NO.match(answer):
        return match[1].casefold()
    return None


def _short_answer(answer: str) -> str | None:
    """The words of an answer of one short line, as they are compared; None for a longer one."""
    answer = answer.strip()
    if len(answer) > LABEL_LENGTH or "\n" in answer or not any(map(str.isalnum, answer)):
        return None
    words = [plain_label(word) for word in _THOUSANDS.sub("", answer).split()]
    words = [word for word in words if word not in _FILLERS]
    return " ".join(words) if 0 < len(words) <= SHORT_WORDS else None


def _agree(one: str, other: str) -> bool:
    """Whether two short answers may say the same: the words of one are all among those of the other."""
    some, more = sorted((set(one.split()), set(other.split())), key=len)
    return one.replace(" ", "") == other.replace(" ", "") or (some <= more and not (more - some) & _NEGATIONS)


def _apart(answers: Sequence[str]) -> bool:
    """Whether the answers fall into groups that do not agree, when those that do are taken together."""
    together, left = [answers[0]], list(answers[1:])
    for one in together:
        together += [other for other in left if _agree(one, other)]
        left = [other for other in left if other not in together]
    return bool(left)


def _cut(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"
