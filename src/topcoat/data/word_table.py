"""WordTable: keys of 32 bytes -> numbers in order of arrival, looked up a hundred thousand at a time.

Open addressing with linear probing: slot(key) = the highest bits of a sum of products, the next slot where another key
stands. A key is compared whole, so that two keys of one hash are two keys. Every step is one operation on arrays; the
few keys that are not where they were looked for go on to the next step.

Knuth 1998, The Art of Computer Programming 3, section 6.4, algorithm L; the hash: Dietzfelbinger et al. 1997.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PARTS = 4  # of 8 bytes each: a key
FIRST_BITS = 16  # slots at the beginning, as a power of two
FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)  # odd; their bits are those of the golden ratio and of primes
MIX = np.uint64(0xFF51AFD7ED558CCD)
HALF = np.uint64(32)

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int32]


class WordTable:
    """Keys (N, PARTS) and their numbers, 0 to N - 1. A number may be taken without a key."""

    def __init__(self) -> None:
        self.n = 0
        self._bits = FIRST_BITS
        self._slots: Numbers = np.full(2**FIRST_BITS, -1, np.int32)
        self._keys: Keys = np.zeros((1024, PARTS), np.uint64)

    def find(self, keys: Keys) -> Numbers:
        """The number of each key (n, PARTS), -1 where it was never added."""
        at = self._first_slots(keys)
        numbers = self._slots[at]
        wrong = numbers >= 0
        wrong &= self._differ(numbers, keys)
        pending = np.flatnonzero(wrong)
        while len(pending):
            at[pending] = self._next(at[pending])
            found = self._slots[at[pending]]
            numbers[pending] = found
            pending = pending[(found >= 0) & self._differ(found, keys[pending])]
        return numbers

    def add(self, keys: Keys) -> Numbers:
        """The numbers that these keys have from now on: none was there before, and none stands twice."""
        numbers = self.take(len(keys))
        self._keys[numbers] = keys
        if 2 * self.n > len(self._slots):
            self._grow()
        else:
            self._enter(numbers)
        return numbers

    def take(self, count: int) -> Numbers:
        """`count` numbers that no key has."""
        numbers = np.arange(self.n, self.n + count, dtype=np.int32)
        self.n += count
        while self.n > len(self._keys):
            self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
        return numbers

    def _grow(self) -> None:
        held = np.flatnonzero(self._keys[: self.n].any(axis=1)).astype(np.int32)
        while 2 * self.n > 2**self._bits:
            self._bits += 1
        self._slots = np.full(2**self._bits, -1, np.int32)
        self._enter(held)

    def _enter(self, numbers: Numbers) -> None:
        """Put the numbers of keys into slots."""
        at = self._first_slots(self._keys[numbers])
        while len(numbers):
            free = self._slots[at] < 0
            self._slots[at[free]] = numbers[free]  # of those that want one slot, one gets it
            left = self._slots[at] != numbers
            numbers, at = numbers[left], self._next(at[left])

    def _first_slots(self, keys: Keys) -> NDArray[np.int64]:
        mixed = (keys * FACTORS).sum(axis=1)
        mixed ^= mixed >> HALF
        mixed *= MIX
        return (mixed >> np.uint64(64 - self._bits)).astype(np.int64)

    def _next(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return (at + 1) & (2**self._bits - 1)

    def _differ(self, numbers: Numbers, keys: Keys) -> NDArray[np.bool_]:
        apart = self._keys[numbers] ^ keys
        return (apart[:, 0] | apart[:, 1] | apart[:, 2] | apart[:, 3]) != 0
