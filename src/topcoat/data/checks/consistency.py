"""Consistency: rows that break the form the others keep, and prompts that are answered in two ways."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from topcoat.data.checks.corpus import PLAIN, Corpus, main_spellings, plain_label
from topcoat.data.checks.finding import Finding, count
from topcoat.data.conversation import EMPTY_TURN
from topcoat.data.labels import LABELLED

MOST, FEW = 0.9, 0.5  # a form that nine of ten rows have is the file's; a habit of less than half of them is drift
FORMS_FROM = 20
MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|user|assistant|system|end)\|>"
    r"|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<bos>|<eos>|<unk>|<pad>|^### (?:Instruction|Response|Input):",
    re.MULTILINE,
)
_RESULT = re.compile(r"####\s*(-?[\d.,/]+)\s*$|\\boxed\{([^{}]+)\}")
_YES_NO = re.compile(r"\W*(yes|no|true|false)\b", re.IGNORECASE)


def _is_json(text: str) -> bool:
    text = text.strip()
    if not (text.startswith(("{", "[")) and text.endswith(("}", "]"))):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


FORMS: dict[str, Callable[[str], bool]] = {
    "JSON": _is_json,
    "a fenced code block": lambda text: text.strip().startswith("```"),
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
    return found


def odd_rows(corpus: Corpus) -> list[Finding]:
    details = {}
    for at, doubts in corpus.doubts.items():
        said = [doubt for doubt in doubts if doubt != EMPTY_TURN or corpus.prompts[at].strip()]  # else an empty prompt
        if said:
            details[at] = "; ".join(said)
    if not details:
        return []
    what = f"{count(len(details), 'row that can be read is', 'rows that can be read are')} often a mistake"
    why = "some templates refuse such rows, and others write what the model will never meet"
    return [Finding(what, why, "mend them, or leave them out", list(details), details)]


def template_text(corpus: Corpus) -> list[Finding]:
    if corpus.form in PLAIN:
        return []
    details = {}
    for at, (prompt, reply) in enumerate(zip(corpus.prompts, corpus.replies, strict=True)):
        if match := MARKS.search(prompt) or MARKS.search(reply):
            details[at] = repr(match[0])
    if not details:
        return []
    what = f"{count(len(details), 'row holds', 'rows hold')} marks of a chat template in the text"
    why = "the template is applied once more, so the model sees marks inside marks"
    return [Finding(what, why, "store the bare turns; the template is added in training", list(details), details)]


def strip_outer(text: str) -> str:
    """Without the white space that `outer_space` speaks of; an indented first line stays."""
    text = text.rstrip()
    return text.lstrip("\n\r")[1:] if _leads(text) and text.lstrip("\n\r")[:1] == " " else text.lstrip("\n\r")


def _leads(text: str) -> bool:
    """Line breaks, or one single blank, in front."""
    return text[:1] in ("\n", "\r") or (text[:1] == " " and text[1:2] not in (" ", "\t", ""))


def _has_words(text: str) -> bool:
    """Empty turns are another check's."""
    return any(map(str.isalnum, text))


def outer_space(corpus: Corpus) -> list[Finding]:
    """White space at the edge of a turn, where it is the habit of less than half of the rows."""
    edges: dict[str, Sequence[bool]] = {
        "the end of a prompt": [text != text.rstrip() and _has_words(text) for text in corpus.prompts],
        "the end of an answer": [any(t != t.rstrip() and _has_words(t) for t in turns) for turns in corpus.answers],
        "the start of an answer": [any(_leads(t) and _has_words(t) for t in turns) for turns in corpus.answers],
    }
    details: dict[int, str] = {}
    for name, flags in edges.items():
        if 0 < sum(flags) < FEW * len(corpus):
            details |= {at: ", ".join(filter(None, (details.get(at), name))) for at, is_so in enumerate(flags) if is_so}
    if not details or corpus.form == "text":
        return []
    what = (
        f"{count(len(details), 'row has', 'rows have')} white space at the outer edge of a turn, the others have none"
    )
    why = "a blank at the edge makes other tokens of the words beside it, which the model will not meet in use"
    return [Finding(what, why, "strip it (--fix does)", sorted(details), details)]


def label_spelling(corpus: Corpus) -> list[Finding]:
    if corpus.labels is None:
        return []
    right = {label: main for label, main in main_spellings(corpus.labels).items() if label != main}
    rows = [at for at, reply in enumerate(corpus.replies) if reply.strip() in right]
    if not rows:
        return []
    details = {at: f"{corpus.replies[at].strip()!r}, mostly {right[corpus.replies[at].strip()]!r}" for at in rows}
    what = f"{count(len(rows), 'row spells', 'rows spell')} a label otherwise than most"
    why = "the model splits its belief between the spellings, and exact match counts one of them as wrong"
    return [Finding(what, why, "write each label in one way", rows, details)]


def contradictions(corpus: Corpus) -> list[Finding]:
    """The same conversation up to an answer that is a label, a result or a yes or no, and is another one."""
    answers: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    is_label = corpus.labels is not None or corpus.form in LABELLED
    for at, turns in enumerate(corpus.answers):
        verdict = _verdict(turns[-1], is_label) if turns else None
        if verdict is not None and corpus.prompts[at].strip():
            asked = (str(corpus.contexts[at]), " ".join(corpus.prompts[at].split()), *turns[:-1])
            answers[asked][verdict].append(at)
    details: dict[int, str] = {}
    drop: list[int] = []
    for found in answers.values():
        if len(found) > 1:
            ranked = sorted(found.values(), key=len, reverse=True)
            first = min(at for rows in ranked for at in rows)
            details |= {at: f"“{_short(corpus.answers[at][-1])}”, {corpus.named(first)} asks the same"
                        for rows in ranked for at in rows}  # fmt: skip
            minority = ranked[1:] if len(ranked[0]) > len(ranked[1]) else ranked
            drop += [at for rows in minority for at in rows]
    if not details:
        return []
    what = f"{len(details):,} rows answer the same prompt in different ways"
    why = "at least one of the answers is wrong, and the model learns to guess"
    fix = "decide which is right (--fix keeps what most of them say, and none where they tie)"
    return [Finding(what, why, fix, sorted(details), details, drop=sorted(drop))]


def _verdict(answer: str, is_label: bool) -> str | None:
    """What can contradict another answer: a label, a marked result, a leading yes or no; None in free text."""
    if is_label:
        return plain_label(answer) or None
    if match := _RESULT.search(answer):
        return "= " + (match[1] or match[2]).replace(",", "").rstrip(".")
    if match := _YES_NO.match(answer):
        return match[1].casefold()
    return None


def _short(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"
