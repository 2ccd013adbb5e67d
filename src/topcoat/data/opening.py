"""The bytes of one data file, unpacked as they are read: what the path is, what the name says, what the bytes say.

Only regular files are opened: a pipe would be waited for and can be read once, a device has no end. A file whose first
bytes are of another kind than its name says is refused by that name. Bytes of a packed file are handed on in bounded
memory, and a file that unpacks to 500 times its size is taken for a bomb.
"""

from __future__ import annotations

import difflib
import errno
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from topcoat.data.lines import ENDINGS, KINDS, TEXTS, BadFile, escaped, names_rows, shown
from topcoat.data.streams import Trailing, bzip2_streams, gzip_streams, xz_streams, zstd_streams
from topcoat.errors import TopcoatError

CHUNK_BYTES = 2**20
BOMB_RATIO, BOMB_BYTES = 500, 256 * 2**20  # text packs 3 to 20 times smaller


PACKED: dict[str, tuple[str, Callable[[IO[bytes]], Any]]] = {
    ".gz": ("gzip", gzip_streams),
    ".bz2": ("bzip2", bzip2_streams),
    ".xz": ("xz", xz_streams),
    ".zst": ("zstd", zstd_streams),
}
"""Ending -> (its name, how to unpack a stream)."""

MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "packed with gzip", "put .gz behind its name"),
    (b"BZh", "packed with bzip2", "put .bz2 behind its name"),
    (b"\xfd7zXZ\x00", "packed with xz", "put .xz behind its name"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "put .zst behind its name"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV (UTF-8)"),
    (b"PK\x05\x06", "an empty zip archive", "download or write it again"),
    (b"Rar!", "a rar archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "unpack it, or pack it with gzip"),
    (b"\x78\x9c", "packed with zlib", "unpack it, or pack it with gzip"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write its rows as JSON Lines"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save it as CSV (UTF-8)"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "write its rows as JSON Lines"),
    (b"\x93NUMPY", "a NumPy array", "write its rows as JSON Lines"),
    (b"SQLite format 3", "a SQLite database", "write its rows as JSON Lines"),
    (b"%PDF", "a PDF file", "write its text as JSON Lines"),
    (b"GGUF", "a GGUF model", "name a file of rows"),
    (b"\x80\x02", "a Python pickle, which is never read", "write its rows as JSON Lines"),
    (b"\x80\x03", "a Python pickle, which is never read", "write its rows as JSON Lines"),
    (b"\x80\x04\x95", "a Python pickle, which is never read", "write its rows as JSON Lines"),
    (b"\x80\x05\x95", "a Python pickle, which is never read", "write its rows as JSON Lines"),
    (b"\x89PNG", "a PNG image", "name a file of rows"),
    (b"\xff\xd8\xff", "a JPEG image", "name a file of rows"),
    (b"\x7fELF", "a program", "name a file of rows"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"<!DOCTYPE", "a web page, not the file itself", "download the raw file"),
    (b"<!doctype", "a web page, not the file itself", "download the raw file"),
    (b"<head", "a web page, not the file itself", "download the raw file"),
    (b"<html", "a web page, not the file itself", "download the raw file"),
    (b"<?xml", "an XML file", "write its rows as JSON Lines"),
)
"""First bytes of files that hold no rows we read -> what the file is, and what to do."""


WORDS = (b"BZh", b"PAR1", b"PARE", b"ARROW1", b"ORC", b"GGUF", b"Rar!")
"""Of these, those that a plain text may begin with."""


def kind_of(path: Path) -> tuple[str, str]:
    """(one of KINDS, an ending of PACKED or "") by the name of the file: (".jsonl", ".gz") for "a.jsonl.gz".

    Raises:
        TopcoatError: not a regular file, no such file, or another ending.
    """
    _refuse_irregular(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    kind = suffixes[-1] if suffixes else ""
    if kind in KINDS:
        return kind, packed
    hint = ""
    if kind == ".ndjson":
        hint = "; its rows are JSON Lines: name it .jsonl"
    if kind in PACKED:
        hint = "; it is packed twice: unpack it once"
    if kind in (".zip", ".tar", ".tgz", ".rar", ".7z") or ".tar" in suffixes:
        hint = "; it is an archive: unpack it, and name one file in it"
    if kind in (".arrow", ".feather", ".orc"):
        hint = "; write it as Parquet"
    if kind in (".xlsx", ".xls", ".ods"):
        hint = "; save the sheet as CSV (UTF-8)"
    what = f"the extension {kind!r} of {escaped(path.name)} is not one of a file of rows"
    raise TopcoatError(what, str(path), f"use {ENDINGS}{hint}")


def _refuse_irregular(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise _not_there(path, error) from error
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        files = _data_files(path)
        inside = f"; it holds {', '.join(files[:5])}" if files else ""
        raise TopcoatError(
            f"{escaped(path)} is a folder; expected one file of rows{inside}", "data", "name one file in it"
        )
    tests = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR}
    what = next((name for name, is_one in tests.items() if is_one(mode)), "a device")
    fix = "write its rows into a file first: they are read more than once"
    raise TopcoatError(f"{escaped(path)} is {what}; expected a file of rows", "data", fix)


def _not_there(path: Path, error: OSError | ValueError) -> TopcoatError:
    number = error.errno if isinstance(error, OSError) else 0
    if number == errno.ELOOP:
        return TopcoatError(
            f"{escaped(path)} is a symbolic link that leads back to itself", "data", "name the file itself"
        )
    if number == errno.EACCES:
        return TopcoatError(
            f"{escaped(path)} cannot be reached: permission is denied", "data", "check its folder's permissions"
        )
    if number == errno.ENAMETOOLONG:
        return TopcoatError(f"{escaped(path.name[:60])}… is too long for a file name", "data", "use a shorter path")
    if not number:
        return TopcoatError(f"{str(path)!r} is no path: {error}", "data", "correct the path")
    if os.path.islink(path):
        what = f"{escaped(path)} is a symbolic link to {escaped(os.readlink(path))}, which is not there"
        return TopcoatError(what, "data", "mend the link, or name the file itself")
    return TopcoatError(f"there is no file {escaped(path)}", "data", _near(path))


def _data_files(folder: Path) -> list[str]:
    try:
        return sorted(shown(p.name) for p in folder.iterdir() if names_rows(p.name))
    except OSError:  # a folder that may not be listed: no hint
        return []


def _near(path: Path) -> str:
    """What to type instead of a file that is not there."""
    name, folder = str(path), path.parent
    if ":/" in name and not name.startswith("/"):  # Path folds https:// into https:/
        return "only files of this machine are read: download it, and name the file"
    if "\\" in name:
        return "folders are separated by / here, as in data/train.jsonl"
    if name.startswith("~"):
        return f"write the folder out: {os.path.expanduser(name)}"
    if not folder.is_dir():
        return f"the folder {escaped(folder)} is not there either; check the path from {Path.cwd()}"
    try:
        there = [shown(p.name) for p in folder.iterdir() if p.is_file()]
    except OSError:
        return f"the folder {escaped(folder)} cannot be listed; check the path"
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    near += sorted(name for name in there if name.split(".")[0] == path.name.split(".")[0] and name not in near)[:3]
    near = near or _data_files(folder)[:5]
    return (
        f"in {escaped(folder)} there is {', '.join(near)}"
        if near
        else f"no data file is in {escaped(folder)}; check the path"
    )


class Reached:
    """How many bytes of a file, as it lies on disk, were read."""

    def __init__(self) -> None:
        self.bytes = 0


class _Counted(io.FileIO):
    """A file that tells what was read of it."""

    def __init__(self, descriptor: int, reached: Reached) -> None:
        super().__init__(descriptor)
        self._reached = reached

    def readinto(self, buffer: Any) -> int | None:
        n = super().readinto(buffer)
        self._reached.bytes += n or 0
        return n


@contextmanager
def opened(path: Path, kind: str, packed: str, reached: Reached | None = None) -> Iterator[io.BufferedReader[Any]]:
    """The unpacked bytes of the file, read as they are asked for; `reached` counts those on disk.

    Raises:
        BadFile: the packing is damaged, or the first bytes are of another kind of file.
        TopcoatError: it cannot be read, or it was changed meanwhile.
    """
    try:
        with io.BufferedReader(_Counted(_open(path), reached or Reached()), CHUNK_BYTES) as file:
            before = os.fstat(file.fileno())
            if packed and before.st_size:
                with _unpacked(path, file, packed, before.st_size) as stream:
                    yield _checked(stream, kind, packed)
            else:
                yield _checked(file, kind, packed)
            after = os.fstat(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise TopcoatError(
            f"{escaped(path.name)} cannot be read: {reason}", str(path), "check its permissions"
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        what = f"{escaped(path.name)} was changed while it was read ({before.st_size:,} bytes, now {after.st_size:,})"
        raise TopcoatError(what, str(path), "wait until it is written, then start again")


def _open(path: Path) -> int:
    # non-blocking: if a pipe was put in the file's place since, it is not waited for
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _checked(stream: io.BufferedReader[Any], kind: str, packed: str) -> io.BufferedReader[Any]:
    """The stream, nothing of it taken, after a look at its first bytes."""
    head = stream.peek(512)[:512]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip() if kind != ".parquet" else head
    for start, what, fix in MAGIC:
        if kind in TEXTS and start in WORDS:
            continue
        if text.startswith(start) and not (kind == ".parquet" and start == b"PAR1"):
            inside = "holds, unpacked, " if packed else "is "
            raise BadFile(f"{inside}{what}", "unpack it once" if packed and what.startswith("packed") else fix)
    if head[257:262] == b"ustar":
        raise BadFile(f"{'holds, unpacked, ' if packed else 'is '}a tar archive", "unpack it, and name one file of it")
    return stream


@contextmanager
def _unpacked(path: Path, file: IO[bytes], packed: str, size: int) -> Iterator[io.BufferedReader[Any]]:
    name, unpack = PACKED[packed]
    _refuse_other_packing(path, file, packed)
    try:
        with io.BufferedReader(_Unpacked(unpack(file), size), CHUNK_BYTES) as stream:
            yield stream
    except Trailing as error:
        what = f"has something behind its {name} data that is no {name}"
        raise BadFile(what, "it is damaged, or files were joined that are none: download or write it again") from error
    except EOFError as error:
        raise BadFile(f"is a {name} file that ends too early: it was cut off", "download or write it again") from error
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the format's
            raise
        fix = f"if it is not packed, name it {path.name.removesuffix(packed)}; otherwise write it again"
        said = str(error).rpartition("while decompressing data: ")[2].rstrip(".")
        raise BadFile(f"is not a whole {name} file ({said})", fix) from error


def _refuse_other_packing(path: Path, file: IO[bytes], packed: str) -> None:
    """Raises BadFile for a file that is packed in another way than its name says."""
    head = file.peek(8)[:8]  # type: ignore[attr-defined]  # a BufferedReader
    for start, what, fix in MAGIC:
        right = next((ending for ending in PACKED if ending in fix), packed)
        if right != packed and head.startswith(start):
            raise BadFile(f"is {what}", f"name it {path.name.removesuffix(path.suffix)}{right}")


class _Unpacked(io.RawIOBase):
    """Bytes of an unpacking stream, counted against the `size` of the packed file."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size, self._given = stream, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), CHUNK_BYTES))
        buffer[: len(data)] = data
        self._given += len(data)
        if self._given > max(BOMB_BYTES, BOMB_RATIO * self._size):
            what = f"unpacks to over {BOMB_RATIO} times its size: it is taken for a bomb"
            raise BadFile(what, "if its rows are real, unpack it and name the unpacked file")
        return len(data)
