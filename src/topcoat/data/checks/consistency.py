"""Consistency: rows that break what the others keep: the order of turns, bare text, clean edges, one spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence

from topcoat.data.checks.corpus import PLAIN, Corpus, main_spellings
from topcoat.data.checks.finding import Finding, count
from topcoat.data.checks.sides import BESIDE
from topcoat.data.conversation import EMPTY_TURN

FEW = 0.5  # a habit of less than half of the rows is drift
MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|user|assistant|system|end)\|>"
    r"|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<bos>|<eos>|<unk>|<pad>|^### (?:Instruction|Response|Input):",
    re.MULTILINE,
)


def odd_rows(corpus: Corpus) -> list[Finding]:
    details = {}
    for at, doubts in corpus.doubts.items():
        said = [doubt for doubt in doubts if doubt != EMPTY_TURN or corpus.prompts[at].strip()]  # else an empty prompt
        if said:
            details[at] = "; ".join(said)
    return [*_odd_turns(details), *_numbered_answers(corpus)]


def _odd_turns(details: dict[int, str]) -> list[Finding]:
    if not details:
        return []
    what = f"{count(len(details), 'row that can be read is', 'rows that can be read are')} often a mistake"
    why = "some templates refuse such rows, and others write what the model will never meet"
    return [Finding(what, why, "mend them, or leave them out", list(details), details)]


def _numbered_answers(corpus: Corpus) -> list[Finding]:
    """Every row has 0 or 1 beside its answer, some 0, and the answers are no labels that say the same in words."""
    unwanted = [at for at, is_wanted in corpus.marks.items() if not is_wanted]
    if not unwanted or len(corpus.marks) < len(corpus) or corpus.labels is not None:
        return []
    what = f"every row has a label of 0 or 1 beside its answer, and {count(len(unwanted), 'is', 'are')} 0"
    why = "0 and 1 are read as classes, so supervised tuning trains every answer: those marked as unwanted, too"
    fix = "for KTO set data.format: unpaired (or write true and false); else keep the rows with 1, or drop the column"
    return [Finding(what, why, fix, unwanted, dict.fromkeys(unwanted, "its label is 0"))]


def template_text(corpus: Corpus) -> list[Finding]:
    if corpus.form in PLAIN:
        return []
    details = {at: f"{match[0]!r} ({BESIDE})" for at, match in corpus.sides.found(MARKS.search) if match}
    for at, (prompt, reply) in enumerate(zip(corpus.prompts, corpus.replies, strict=True)):
        if match := MARKS.search(prompt) or MARKS.search(reply):
            details[at] = repr(match[0])
    if not details:
        return []
    what = f"{count(len(details), 'row holds', 'rows hold')} marks of a chat template in the text"
    why = "the template is applied once more, so the model sees marks inside marks"
    return [Finding(what, why, "store the bare turns; the template is added in training", sorted(details), details)]


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
