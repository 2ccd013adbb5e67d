"""Language: answers in another language than their prompt.

py3langid names the language of a text (139 languages, a naive Bayes model over bytes, 4.6 MB inside the package, BSD).
Chosen over lingua (96 MB, slower) and fastText's models (fetched from the network). It is sure of texts of some 100
letters, so shorter ones are not asked about; and where the prompt names a language or asks for a translation, another
language is what was asked for. At most 20,000 rows are looked at, evenly spread: some 4 seconds.

Paper: Lui and Baldwin 2012, "langid.py: An off-the-shelf language identification tool".
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.units import show_percent

MOST, LETTERS, LOOKED_AT, SURE = 20_000, 50, 400, 0.9
FOREIGN = 0.5  # with more rows than this answered in another language, that may be the task: said once, of the file
_ASKED = re.compile(
    r"translat|language|traduc|übersetz|traduz|tradui|перевед|переклад|翻译|翻譯|翻訳"
    r"|\b(?:english|french|german|spanish|italian|portuguese|dutch|russian|ukrainian|polish|chinese|mandarin|japanese|korean"
    r"|arabic|hindi|turkish|vietnamese|thai|swedish|danish|finnish|norwegian|greek|hebrew|latin|czech|hungarian|romanian"
    r"|indonesian|catalan|inglés|englisch|anglais|deutsch|français|español|italiano)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|[\d_{}\[\]()<>=+*/\\|#@$%^&~]+", re.DOTALL)
# Pairs one cannot tell apart in a few words, and what is read as one language here.
_SAME = {"wuu": "zh", "yue": "zh", "zh-classical": "zh", "gl": "pt", "an": "es", "oc": "ca", "pcm": "en", "sco": "en",
         "nn": "no", "nb": "no", "da": "no", "bs": "hr", "sr": "hr", "sh": "hr", "ms": "id", "af": "nl", "ht": "fr",
         "lb": "de", "als": "de", "ast": "es", "be": "ru", "simple": "en", "arz": "ar", "azb": "fa"}  # fmt: skip


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """A model of our own, so that the library's shared one stays as it is."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """The language's code if the text is long enough and the model is sure, else None."""
    bare = " ".join(_CODE.sub(" ", text[: 4 * LOOKED_AT]).split())[:LOOKED_AT]
    letters = sum(map(str.isalpha, bare))
    wide = sum(c > "\u2e7f" for c in bare)  # a Chinese character says as much as three letters
    if letters + 2 * wide < LETTERS or letters < 0.6 * len(bare.replace(" ", "")):
        return None
    name, probability = _identifier().classify(bare)
    return _SAME.get(str(name), str(name)) if probability >= SURE else None


def wrong_language(corpus: Corpus) -> list[Finding]:
    if corpus.labels is not None or corpus.form == "text" or not len(corpus):
        return []
    step = -(-len(corpus) // MOST)
    looked = range(0, len(corpus), step)
    details: dict[int, str] = {}
    for done, at in enumerate(looked):
        if done % 1000 == 0:
            corpus.tell("languages", done, len(looked))
        reply, prompt = corpus.replies[at], corpus.prompts[at]
        if reply.isascii() and prompt.isascii() and _is_plain_english(reply) and _is_plain_english(prompt):
            continue
        answered = language_of(reply)
        asked = ("en" if _is_plain_english(prompt) else language_of(prompt)) if answered else None
        if answered and asked and answered != asked and not _ASKED.search(prompt):
            details[at] = f"asked in {asked}, answered in {answered}"
    if not details:
        return []
    if len(details) > FOREIGN * len(looked):
        return [_most_rows(details, len(looked))]
    seen = f" of {len(looked):,} looked at" if step > 1 else ""
    what = f"{count(len(details), 'answer', 'answers')}{seen} in another language than the prompt"
    why = "the model learns to change the language unasked"
    return [Finding(what, why, "correct them, or leave them out", list(details), details)]


def _most_rows(details: dict[int, str], looked: int) -> Finding:
    """One thing, said of a file that answers mostly in another language; no row is to be left out for it."""
    pair, n = Counter(details.values()).most_common(1)[0]
    share = show_percent(len(details) / looked)
    what = f"{share} of the answers are in another language than the prompt: {pair} ({n:,} rows)"
    why = "the model learns to change the language, though no prompt says so"
    fix = "if that is the task, say it in the prompts or set data.checks.wrong_language: off; else correct the answers"
    return Finding(what, why, fix, list(details), details, drop=[])


_ENGLISH = re.compile(r"\b(?:the|and|what|how|are|that|with|for|you|to)\b", re.IGNORECASE)


def _is_plain_english(text: str) -> bool:
    """Enough small English words in the first part: most rows of most files need not be asked about."""
    start = text[:LOOKED_AT]
    return len(_ENGLISH.findall(start)) >= max(2, len(start) / 60)
