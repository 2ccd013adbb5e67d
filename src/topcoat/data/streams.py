"""Packed streams unpacked in bounded memory: gzip, bzip2, xz and zstd, several in one file, to the last byte of it.

Python's own readers pass over what stands behind a stream and is none, so that a file whose second half is damaged
would be read as its first half. Here it is an error; zeros, with which some programs fill a file up, may follow.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol

MOST_FILLING = 2**24
"""Zeros behind the last stream that are passed over, in bytes."""
_READ = 2**17


class Trailing(Exception):
    """Something stands behind a stream that is none itself."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the ways of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self.eof and not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class Streams:
    """What the streams of `file` hold, one behind the other.

    `read` raises EOFError where the last one is cut off, Trailing for what follows it and is none, and the error of its
    library for what is damaged.
    """

    def __init__(self, file: IO[bytes], start: Callable[[], _Decompressor], magic: bytes) -> None:
        self._file, self._start, self._magic = file, start, magic
        self._inner = start()
        self._held = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            if self._inner.eof and not self._next():
                return b""
            data = self._held
            self._held = b""
            if not data and self._inner.needs_input:
                data = self._file.read(_READ)
                if not data:
                    raise EOFError("the stream is cut off")
            if found := self._inner.decompress(data, size):
                return found

    def _next(self) -> bool:
        """Begin the stream that follows; False at the end of the file, which zeros may fill."""
        rest, zeros = self._inner.unused_data, 0
        while True:
            rest = rest or self._file.read(_READ)
            if not rest:
                return False
            kept = rest.lstrip(b"\0")
            zeros += len(rest) - len(kept)
            if zeros > MOST_FILLING:
                raise Trailing
            if kept:
                break
            rest = b""
        if kept[:2] != self._magic[: len(kept)]:
            raise Trailing
        self._held, self._inner = kept, self._start()
        return True


def gzip_streams(file: IO[bytes]) -> Any:
    """Reads a gzip file."""
    return Streams(file, _Gzip, b"\x1f\x8b")


def bzip2_streams(file: IO[bytes]) -> Any:
    """Reads a bzip2 file."""
    return Streams(file, bz2.BZ2Decompressor, b"BZ")


def xz_streams(file: IO[bytes]) -> Any:
    """Reads an xz file, or one of the older lzma kind."""
    return Streams(file, lzma.LZMADecompressor, b"\xfd7")


def zstd_streams(file: IO[bytes]) -> Any:
    """Reads a zstd file."""
    import pyarrow as pa

    return pa.CompressedInputStream(file, "zstd")
