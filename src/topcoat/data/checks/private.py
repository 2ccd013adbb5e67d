"""Secrets and personal data, by rules that check themselves: prefixes, lengths and checksums instead of guesses.

IBAN: moved and read as a number, 97 divides it with rest 1 (ISO 13616). Cards: Luhn (ISO/IEC 7812-1) and a known issuer
range. GitHub tokens: the last six characters are the CRC-32 of the rest in base 62 (github.blog, April 2021). JSON web
tokens: the header is JSON with an "alg". Values that publishers use as examples are passed over.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.data.checks.sides import BESIDE


class Rule(NamedTuple):
    """`holds` looks closer at a match; the rule is tried where one of the `hints` stands in the text (any if none)."""

    pattern: re.Pattern[str]
    holds: Callable[[str], bool]
    hints: tuple[str, ...] = ()


def luhn(digits: str) -> bool:
    """Whether the digits satisfy the checksum of card numbers."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        total += digit if place % 2 == 0 else sum(divmod(2 * digit, 10))
    return total % 10 == 0


_ISSUER = re.compile(
    r"(?:4\d{12}(?:\d{3})?|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|6(?:011|5\d\d)\d{12})"
)
_EXAMPLES = frozenset(
    {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "4012888888881881"}
)


def is_card(text: str) -> bool:
    """A card number of a known issuer that no publisher uses as an example."""
    digits = re.sub(r"\D", "", text)
    return bool(_ISSUER.fullmatch(digits)) and luhn(digits) and digits not in _EXAMPLES and len(set(digits)) > 3


_IBAN_LENGTH = {
    "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18,
    "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24, "SI": 19,
    "SK": 24, "TR": 26, "AE": 23, "IL": 23,
}  # fmt: skip


def is_iban(text: str) -> bool:
    """A bank account number with its country's length and a right checksum."""
    plain = re.sub(r"\s", "", text).upper()
    if _IBAN_LENGTH.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_github_token(text: str) -> bool:
    """A token whose checksum is right."""
    body, check = text[4:-6], text[-6:]
    left, number = zlib.crc32(body.encode()), ""
    while left:
        left, digit = divmod(left, 62)
        number = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit] + number
    return number.rjust(6, "0") == check


def is_jwt(text: str) -> bool:
    """A JSON web token: the first part is JSON that names an algorithm."""
    head = text.split(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, TypeError, RecursionError):
        return False


def is_random(text: str) -> bool:
    """Looks drawn by chance: letters and digits mixed, no example, not the same few characters again and again."""
    plain = text.lower()
    if re.search(r"example|xxxx|your|test|dummy|sample|0123456|abcdefg|12345678|placeholder", plain):
        return False
    body = re.sub(r"^[a-z]{2,6}[-_](?:[a-z]+[-_])?", "", plain)
    return any(map(str.isdigit, body)) and any(map(str.isalpha, body)) and len(set(body)) >= min(10, len(body) // 2)


def _always(text: str) -> bool:
    return True


SECRETS: dict[str, Rule] = {
    "private key": Rule(
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?:[A-Za-z0-9+/=]|\\n|[\r\n]+(?=[\w+/=-])){40,}"
            r"(?:-----END [A-Z ]+-----)?"
        ),
        _always,
        ("PRIVATE KEY",),
    ),
    "AWS access key": Rule(re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), is_random, ("AKIA", "ASIA")),
    "GitHub token": Rule(re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36}\b"), is_github_token, ("gh",)),
    "GitHub fine-grained token": Rule(re.compile(r"\bgithub_pat_\w{82}\b"), is_random, ("github_pat_",)),
    "OpenAI key": Rule(re.compile(r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{32,}\b"), is_random, ("sk-",)),
    "Anthropic key": Rule(re.compile(r"\bsk-ant-[A-Za-z0-9_-]{32,}\b"), is_random, ("sk-ant-",)),
    "Hugging Face token": Rule(re.compile(r"\bhf_[A-Za-z0-9]{34}\b"), is_random, ("hf_",)),
    "Google API key": Rule(re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![\w-])"), is_random, ("AIza",)),
    "Slack token": Rule(re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{20,}\b"), is_random, ("xox",)),
    "Stripe key": Rule(re.compile(r"\b[sr]k_live_[0-9A-Za-z]{20,}\b"), is_random, ("k_live_",)),
    "GitLab token": Rule(re.compile(r"\bglpat-[\w-]{20}(?![\w-])"), is_random, ("glpat-",)),
    "npm token": Rule(re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"), is_random, ("npm_",)),
    "JSON web token": Rule(re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"), is_jwt, ("eyJ",)),
    "password in a URL": Rule(
        re.compile(
            r"\b[a-z][a-z0-9+]{2,15}://[^\s:/@]{2,40}:(?!pass(?:word)?@|secret@|\*+@|<|\{|\$)[^\s:/@]{6,60}@[\w.-]{3,}(?::\d+)?"
        ),
        _always,
        ("://",),
    ),
}
_EXAMPLE_MAIL = re.compile(
    r"@(?:[\w.-]+\.)?(?:example|test|invalid|localhost|domain|email|company|yourcompany|acme|xyz|abc)\b", re.I
)
PERSONAL: dict[str, Rule] = {
    "e-mail address": Rule(
        re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,12}(?![\w@])"),
        lambda text: not _EXAMPLE_MAIL.search(text),
        ("@",),
    ),
    "telephone number": Rule(
        re.compile(
            r"(?<![\w.+])(?:\+[1-9]\d{0,2}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,4}"
            r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
        ),
        lambda text: _is_telephone(text),
        ("+", ") ", ")", "-"),
    ),
    "bank account (IBAN)": Rule(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    "card number": Rule(re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,15}(?![\w-])"), is_card),
}


def _is_telephone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    fiction = "555" in (digits[-10:-7], digits[-7:-4]) or "1234567" in digits or "000000" in digits
    is_hotline = bool(re.match(r"1?8(?:00|33|44|55|66|77|88)", digits[-11:])) and len(digits) <= 11
    return 10 <= len(digits) <= 15 and not fiction and not is_hotline and len(set(digits)) > 3


_DIGITS = re.compile(r"\d")


def find(text: str, rules: dict[str, Rule]) -> Iterator[tuple[str, re.Match[str]]]:
    """(kind, match) for everything in `text` that a rule holds for."""
    for kind, rule in rules.items():
        if rule.hints and not any(hint in text for hint in rule.hints):
            continue
        for match in rule.pattern.finditer(text):
            if rule.holds(match[0]):
                yield kind, match


def redact(text: str, rules: dict[str, Rule]) -> str:
    """`text` with everything that a rule holds for replaced by its kind, such as [e-mail address]."""
    for kind, rule in rules.items():
        text = rule.pattern.sub(lambda match, k=kind, r=rule: f"[{k}]" if r.holds(match[0]) else match[0], text)  # type: ignore[misc]
    return text


def redact_secrets(text: str) -> str:
    """Secrets replaced by their kind."""
    return redact(text, SECRETS)


def redact_personal(text: str) -> str:
    """Personal data replaced by its kind."""
    return redact(text, PERSONAL)


def _found(corpus: Corpus, rules: dict[str, Rule]) -> tuple[dict[int, str], Counter[str]]:
    """Row -> kinds in it (never the values: reports are passed on), and rows by kind."""
    found: dict[int, set[str]] = {}
    for at, texts in enumerate(zip(corpus.prompts, corpus.written, strict=True)):
        if some := _kinds(texts[0], rules) | _kinds(texts[1], rules):
            found[at] = some
    details = {at: ", ".join(sorted(some)) for at, some in found.items()}
    for at, some in corpus.sides.found(lambda text: _kinds(text, rules)):
        details.setdefault(at, f"{', '.join(sorted(some))} ({BESIDE})")
        found[at] = found.get(at, set()) | some
    return dict(sorted(details.items())), Counter(kind for some in found.values() for kind in some)


def _kinds(text: str, rules: dict[str, Rule]) -> set[str]:
    """Kinds of what the rules find in a text."""
    some = {kind for kind, _ in find(text, rules)}
    if some and rules is PERSONAL:  # an address that is part of a secret is that secret's
        some = {kind for kind, _ in find(redact_secrets(text), rules)}
    return some


def secrets(corpus: Corpus) -> list[Finding]:
    details, kinds = _found(corpus, SECRETS)
    if not details:
        return []
    what = f"{count(len(details), 'row holds', 'rows hold')} secrets: {_said(kinds)}"
    why = "a model can be made to say what it was trained on"
    fix = "revoke them, and take them out of the rows (--fix puts their kind in their place)"
    return [Finding(what, why, fix, list(details), details)]


def personal_data(corpus: Corpus) -> list[Finding]:
    details, kinds = _found(corpus, PERSONAL)
    if not details:
        return []
    what = f"{count(len(details), 'row holds', 'rows hold')} personal data: {_said(kinds)}"
    why = "a model can be made to say what it was trained on, and the law may ask for consent"
    fix = "take it out where it belongs to real people (--fix puts its kind in its place)"
    return [Finding(what, why, fix, list(details), details)]


def _said(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common())
