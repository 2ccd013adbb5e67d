"""Where a text is cut into words: at each single space between two characters that are none. Texts are UTF-8 bytes.

    "one two  three, four"  ->  "one", " two  three,", " four"

What is white space is what Python's `str.isspace` says: 11 bytes of ASCII, and 19 characters of two or three bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ASCII_SPACE = np.zeros(256, np.bool_)
ASCII_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
WIDE_SPACES = (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


def _code(text: str) -> int:
    """The last three bytes of a text in UTF-8, or two, as a number."""
    return int.from_bytes(text.encode()[-3:], "big")


TWO = np.array([_code(chr(code)) for code in WIDE_SPACES if code < 0x800])
THREE = np.array([_code(chr(code)) for code in WIDE_SPACES if code >= 0x800])


def cut(buffer: Bytes, size: int, edges: Places) -> tuple[Places, NDArray[np.bool_]]:
    """First bytes of the words in buffer[:size], in order, and whether each stands at one of `edges`.

    No word spans an edge; 0 is one, and `size` may be. `buffer` goes on for three bytes or more.
    """
    marks = np.zeros(size + 1, np.uint8)
    marks[edges] = 2
    spaces = np.flatnonzero(buffer[:size] == 32)
    spaces = spaces[(marks[spaces] == 0) & (marks[spaces + 1] == 0)]
    before, behind = buffer[spaces - 1], buffer[spaces + 1]
    inside = ~(ASCII_SPACE[before] | ASCII_SPACE[behind])
    wide = np.flatnonzero((before >= 0x80) | (behind >= 0x80))
    if len(wide):
        at = spaces[wide]
        inside[wide] &= ~(_is_wide_space(buffer, at + 1) | _is_wide_space(buffer, at - 3, at - 2))
    marks[spaces[inside]] = 1
    starts = np.flatnonzero(marks[:size])
    return starts, marks[starts] == 2


def _is_wide_space(buffer: Bytes, at: Places, two_at: Places | None = None) -> NDArray[np.bool_]:
    """Whether three bytes from `at` are a white space, or two bytes from `two_at` (`at` if not given) are.

    Places before the buffer wrap around to its padding, which is no white space.
    """
    two_at = at if two_at is None else two_at
    first, second, third = (buffer[at + n].astype(np.int32) for n in range(3))
    one, other = buffer[two_at].astype(np.int32), buffer[two_at + 1].astype(np.int32)
    return np.isin(first << 16 | second << 8 | third, THREE) | np.isin(one << 8 | other, TWO)
