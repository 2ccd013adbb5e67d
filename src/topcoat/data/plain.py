"""Reader of plain text: a .txt or .md file is one document, read whole. Line ends of Windows become "\\n"."""

from __future__ import annotations

import io
from collections.abc import Iterator

from topcoat.data.encodings import refuse_other_encodings
from topcoat.data.lines import MOST_ROW_BYTES, BadFile, BadLine, Item


def read_document(stream: io.BufferedReader, notes: list[str]) -> Iterator[Item]:
    """The whole text as one row, {"text": ...}.

    Raises:
        BadFile: over 64 MiB, NUL bytes, or another encoding than UTF-8.
    """
    refuse_other_encodings(stream.peek(4096))
    data = stream.read(MOST_ROW_BYTES + 1)
    if len(data) > MOST_ROW_BYTES:
        what = f"is one document of over {MOST_ROW_BYTES // 2**20} MiB"
        raise BadFile(what, 'cut it where its documents end: a .jsonl file, one {"text": ...} object a line')
    if b"\0" in data:
        raise BadFile(f"holds NUL bytes (first at byte {data.index(0):,}): it is no text", "name a file of text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte 0x{data[error.start]:02x} in line {line:,}"
        raise BadFile(what, "if it is Latin-1, save it as UTF-8: iconv -f LATIN1 -t UTF-8 old > new") from error
    if data.startswith(b"\xef\xbb\xbf"):
        notes.append("starts with a byte-order mark (U+FEFF); it was skipped")
    if "\r\n" in text:
        notes.append(f"ends {text.count(chr(13) + chr(10)):,} lines as Windows does; they were read as \\n")
        text = text.replace("\r\n", "\n")
    if text.strip():
        yield 1, {"text": text}
    else:
        yield BadLine(1, "holds nothing but white space", "write some text into it")
