"""Damaged text: decoded with the wrong encoding, or with what is left of web pages, logs and terminals.

Text that was UTF-8 and was read as Windows-1252 comes back by the way it went: written as Windows-1252 and read as
UTF-8 it is the original. A run of text is mended only where that works and shortens it, so that text which merely has
an Ã in it stays.
"""

from __future__ import annotations

import html
import re

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.data.checks.sides import BESIDE

# A UTF-8 lead byte read as one character, then its continuation bytes read so (Windows-1252 and Latin-1).
_CONTINUED = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_BAD = re.compile(f"(?:[Â-ß]{_CONTINUED}|[à-ï]{_CONTINUED}{{2}}|[ð-ô]{_CONTINUED}{{3}})+")
_LOST = re.compile("\ufffd")
_GONE = "U+FFFD: a character is lost"
_TAG = re.compile(
    r"</?(?:div|span|p|br|a|font|td|tr|table|script|style|img|li|ul|ol|iframe|nav|footer|header|strong|em|b|i|h[1-6])"
    r"(?:\s[^<>]{0,300})?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|hellip|mdash|ndash|rsquo|lsquo|rdquo|ldquo|#\d{2,5}|#x[0-9a-f]{2,5});"
)
_LOG = re.compile(
    r"^[ \t]*\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\n]{0,40}?\b(?:DEBUG|INFO|WARN(?:ING)?|ERROR|FATAL)\b"
    r"|^[ \t]*\[?(?:DEBUG|INFO|WARN(?:ING)?|ERROR|FATAL)\]?[ :-]+\[?\d{4}-\d\d-\d\d"
    r"|^Traceback \(most recent call last\):",
    re.MULTILINE,
)
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]?")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_ABOUT_CODE = re.compile(
    r"\b(?:html|xml|svg|css|javascript|jsx|react|php|web ?(?:page|site|form)|tags?|markup|code|script|function|element"
    r"|log|logs|traceback|exception|error|stack ?trace|regex|parse|url|python|java|sql|bold|italic|hyperlink)\b",
    re.IGNORECASE,
)


def repair(text: str) -> str:
    """`text` with every run that is UTF-8 read as Windows-1252 put right; twice damaged text twice."""
    for _ in range(3):
        mended = _BAD.sub(_mend, text)
        if mended == text:
            return text
        text = mended
    return text


def _mend(match: re.Match[str]) -> str:
    raw = bytearray()
    for character in match[0]:
        code = ord(character)
        try:
            raw += bytes([code]) if code < 256 else character.encode("cp1252")
        except UnicodeEncodeError:
            return match[0]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def mojibake(corpus: Corpus) -> list[Finding]:
    details = {at: f"{said} ({BESIDE})" for at, said in corpus.sides.found(_damage)}
    for at, (prompt, reply) in enumerate(zip(corpus.prompts, corpus.written, strict=True)):
        if not (prompt.isascii() and reply.isascii()) and (said := _damage(f"{prompt}\n{reply}")):
            details[at] = said
    if not details:
        return []
    details = dict(sorted(details.items()))
    lost = [at for at, said in details.items() if said.startswith(_GONE)]
    what = f"{count(len(details), 'row holds', 'rows hold')} text that was decoded with the wrong encoding"
    why = "the model learns to write it"
    fix = "decode the source as UTF-8 (--fix mends what can be told, and leaves out rows with lost characters)"
    return [Finding(what, why, fix, list(details), details, drop=lost)]


def _damage(text: str) -> str:
    """The first damage that can be mended, else that something is lost; nothing where all is well."""
    if text.isascii():
        return ""
    for match in _BAD.finditer(text):
        if (right := repair(match[0])) != match[0]:
            return f"“{match[0][:12]}” for “{right[:12]}”"
    return _GONE if _LOST.search(text) else ""


def debris(corpus: Corpus) -> list[Finding]:
    """Tags, entities, log lines and terminal codes in answers that are not about code."""
    details = {}
    for at, (prompt, reply) in enumerate(zip(corpus.prompts, corpus.written, strict=True)):
        if match := _TERMINAL.search(prompt) or _TERMINAL.search(reply):
            details[at] = f"terminal code {match[0]!r}"
            continue
        if corpus.form == "text" or _about_code(prompt, reply):
            continue
        bare = _CODE.sub("", reply)
        if "<" in bare and (tags := _TAG.findall(bare)):
            details[at] = f"HTML tag {tags[0][:30]}" + (f" and {len(tags) - 1} more" if tags[1:] else "")
        elif "&" in bare and (match := _ENTITY.search(bare)):
            details[at] = f"HTML entity {match[0]} for {html.unescape(match[0])!r}"
        elif match := _LOG.search(bare):
            details[at] = f"log line {match[0].strip()[:40]}"
    if not details:
        return []
    what = f"{count(len(details), 'row holds', 'rows hold')} what is left of web pages, logs or terminals"
    why = "the model learns to write it"
    return [Finding(what, why, "clean the text, or leave the rows out", list(details), details)]


def _about_code(prompt: str, reply: str) -> bool:
    start = reply.lstrip()[:200].lower()
    return start.startswith(("<", "{", "#!")) or bool(_ABOUT_CODE.search(prompt)) or "<html" in start
