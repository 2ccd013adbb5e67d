"""Bytes that survive a crash: written beside, synced, renamed into place, and the folder synced. No tensors here.

A reader sees the old file or the new one, never half of one: a temporary sibling `<name>.tmp-<pid>-<nonce>` is filled
and fsynced, one rename publishes it, and an fsync of the parent folder makes the rename last. Rename without fsync is
the classic hole: after a power cut the name is there and the bytes are not.

Source: Pillai et al. 2014, "All File Systems Are Not Created Equal" (OSDI), on which orders of calls survive.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from topcoat.disk_errors import LASTING, PASSING, disk_error
from topcoat.errors import TopcoatError

TEMPORARY = re.compile(r"\.tmp-(\d+)-([0-9a-f]{8})$")
CHUNK_BYTES = 8 * 2**20  # one write or read; small enough that a signal is never far away
_OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# Nonces of the temporaries this process is filling. A restarted container gets its old pid again, so "my pid" alone
# does not tell a stray of the last life from a file being written now.
_being_written: set[str] = set()


def temporary_beside(final: Path) -> Path:
    """A name in the same folder, and so on the same disk, that nobody else uses and `sweep_temporaries` knows."""
    nonce = secrets.token_hex(4)
    _being_written.add(nonce)
    return final.with_name(f"{final.name}.tmp-{os.getpid()}-{nonce}")


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, each name made to last: mkdir alone may be gone after a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power cut."""
    descriptor = os.open(folder, _OPEN_FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, pieces: Sequence[bytes | memoryview], after_chunk: Callable[[], None] = lambda: None) -> str:
    """Write a file that is not there yet, fsynced, mode by umask; its space is reserved first, so that a full disk is
    found before a byte is written. Returns the SHA-256 of what was handed in. Pieces are read in chunks, and
    `after_chunk` is called after each: a piece that is a mapped file can be let go of there.

    Raises:
        OSError: as the system says it; the caller deletes what is there and calls `disk_error`.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, _OPEN_NEW, 0o666)
    try:
        _reserve(descriptor, sum(memoryview(piece).nbytes for piece in pieces))
        for piece in pieces:
            whole = memoryview(piece).cast("B")
            for start in range(0, len(whole), CHUNK_BYTES):
                rest = whole[start : start + CHUNK_BYTES]
                digest.update(rest)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                after_chunk()
        os.fsync(descriptor)
        if sys.platform == "linux":
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that reading back reads the disk
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _reserve(descriptor: int, size: int) -> None:
    """Take `size` bytes on the disk where the file system can do that ahead of writing."""
    if sys.platform != "linux" or size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def write_file(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`, whole or not at all; text is written as UTF-8. The mode follows the umask.

    Raises:
        TopcoatError: the disk did not take it (DiskFull where it may later). What was at `path` is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = temporary_beside(path)
    try:
        write_new(temporary, [content])
        os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise disk_error(error, path, len(content)) from error
        raise
    finally:
        _forget(temporary)


@contextmanager
def publish_directory(final: Path, need: int | None = None) -> Iterator[Path]:
    """A folder to fill that appears at `final` complete or not at all.

    Yields `<final>.tmp-<pid>-<nonce>`. On success every file in it gets its mode by the umask (safetensors writes
    0600) and is fsynced, the folder is renamed to `final` and the parent fsynced. On any error the temporary is deleted
    and `final` is as before. `need` is what the writer expects to write in bytes, for the message.

    Raises:
        TopcoatError: `final` exists, or the disk did not take it (DiskFull where it may later).
    """
    if os.path.lexists(final):
        raise TopcoatError(f"{final.name} exists already", str(final), "use another name, or move what is there away")
    temporary = temporary_beside(final)
    try:
        make_folder(final.parent)
        os.mkdir(temporary)
        yield temporary
        _sync_tree(temporary)
        os.rename(temporary, final)
        try:
            sync_folder(final.parent)
        except OSError:
            os.rename(final, temporary)  # a save whose fsync failed is not a save: nothing may find it
            raise
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and (error.errno in PASSING or error.errno in LASTING):
            raise disk_error(error, final, need) from error
        raise
    finally:
        _forget(temporary)


def _sync_tree(folder: Path) -> None:
    """Fsync every file below `folder`, and every folder, each with its mode by the umask."""
    mode = stat.S_IMODE(os.stat(folder).st_mode)  # made with 0777, so this is what the umask left of it
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, mode & 0o666 if name in names else mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(folder)


def _forget(temporary: Path) -> None:
    _being_written.discard(temporary.name[-8:])


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal; memory use does not grow with the file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def discard(path: Path) -> None:
    """Delete a file or folder so that it is never seen half-deleted under its own name: rename first, then delete.

    Raises:
        OSError: it could not be moved or deleted; what is left has a name that `sweep_temporaries` knows.
    """
    trash = temporary_beside(path.with_name(f"trash-{path.name}"))
    try:
        os.rename(path, trash)
        _delete(trash)
    finally:
        _forget(trash)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def sweep_temporaries(folder: Path) -> list[Path]:
    """Delete the temporaries in `folder` whose writer is dead; returns what was deleted. Others are left alone."""
    swept = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = TEMPORARY.search(path.name)
        if match and not _is_being_written(int(match[1]), match[2]):
            with suppress(OSError):  # what cannot be deleted now is met again at the next sweep
                _delete(path)
                swept.append(path)
    return swept


def _is_being_written(pid: int, nonce: str) -> bool:
    if pid == os.getpid():
        return nonce in _being_written
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # alive, and somebody else's
        return True
    return True
