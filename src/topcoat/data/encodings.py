"""Which encoding bytes are in: UTF-8 is read, and what is surely another is named with the command that converts it."""

from __future__ import annotations

from topcoat.data.lines import BadFile

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32", "UTF-32"),
    (b"\xff\xfe", "UTF-16", "UTF-16"),
    (b"\xfe\xff", "UTF-16", "UTF-16"),
)


def refuse_other_encodings(head: bytes) -> None:
    """A look at the first bytes of a file.

    Raises:
        BadFile: UTF-16 or UTF-32, by their mark or by where their zeros stand; or nothing but zeros.
    """
    for mark, name, code in _MARKS:
        if head.startswith(mark):
            raise _other(name, code)
    head = head[: len(head) // 4 * 4][:4096] or head
    if not head.count(0):
        return
    if not head.strip(b"\0"):
        raise BadFile("begins with NUL bytes only: it was not written completely", "write or download it again")
    zeros = [head[start::4].count(0) / max(1, len(head[start::4])) for start in range(4)]
    full = [share > 0.6 for share in zeros]
    if full == [False, True, True, True] or full == [True, True, True, False]:
        code = "UTF-32LE" if full[3] else "UTF-32BE"
        if not _is_text(head, code):
            raise BadFile("holds numbers, not text: it is a binary file", "write its rows as JSON Lines")
        raise _other("UTF-32", code)
    if full == [False, True, False, True] or full == [True, False, True, False]:
        raise _other("UTF-16", "UTF-16LE" if full[1] else "UTF-16BE")


def _is_text(head: bytes, code: str) -> bool:
    """Whether the whole characters of the first bytes are such as stand in a text."""
    try:
        text = head[: len(head) // 4 * 4].decode(code)
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\t\r\n\ufeff" for c in text[:64])


def _other(name: str, code: str) -> BadFile:
    return BadFile(f"is {name}, not UTF-8", f"save it as UTF-8: iconv -f {code} -t UTF-8 old > new")
