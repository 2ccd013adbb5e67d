"""Why a file cannot be written, in words: what the system means, what to do, and whether waiting helps."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from topcoat.errors import TopcoatError
from topcoat.units import show_bytes

PASSING: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left on the disk", "free space on that disk, or put the output on another one"),
    errno.EDQUOT: ("the disk quota is used up", "delete files counted in the quota, or put the output on another disk"),
    errno.EFBIG: ("the file would pass the size limit", "raise the limit (ulimit -f), or use another file system"),
    errno.EIO: ("the disk reports an input/output error", "check the disk and its cable or network (dmesg)"),
    errno.EROFS: ("the disk is mounted read-only", "mount it writable (mount -o remount,rw), or use another disk"),
    errno.EMFILE: ("this process has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("the machine has too many files open", "raise fs.file-max, or end programs that hold files"),
}
"""Errors that may pass while a run waits: errno -> (what it means, what to do)."""

LASTING: dict[int, tuple[str, str]] = {
    errno.EACCES: ("permission is denied", "give this user write permission there, or use another folder"),
    errno.EPERM: ("the system does not permit it", "use a folder of this user on an ordinary file system"),
    errno.ENOENT: ("the folder is not there", "make the folder, or correct the path"),
    errno.ENOTDIR: ("a part of the path is a file", "use another path, or move that file away"),
    errno.EISDIR: ("the path is a folder", "use another path, or move that folder away"),
    errno.EEXIST: ("the path exists already", "use another path, or move what is there away"),
    errno.ENOTEMPTY: ("the path exists already", "use another path, or move what is there away"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter path"),
    errno.ELOOP: ("the path is a symbolic link", "use the path the link points to"),
}
"""Errors that waiting does not cure."""


class DiskFull(TopcoatError):
    """The disk cannot take the bytes now and may later: full, over quota, failing, read-only. Exit code 1.

    `need` and `free` are bytes, None where unknown; `errno` is the system's number.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "", *, need: int | None, free: int | None, errno: int):
        super().__init__(what, where, fix)
        self.need, self.free, self.errno = need, free, errno


def free_bytes(path: Path) -> int | None:
    """Bytes this user may still write on the disk of `path` (or of its nearest folder that exists); None if unknown."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            status = os.statvfs(folder)
            return status.f_bavail * status.f_frsize
    return None


def disk_error(error: OSError, path: Path, need: int | None) -> TopcoatError:
    """What `error` means for someone who wanted to write `need` bytes to `path`: a DiskFull where waiting may help."""
    number = error.errno or 0
    reason, fix = PASSING.get(number) or LASTING.get(number) or (error.strerror or str(error), "use another folder")
    free = free_bytes(path.parent)
    room = [f"need {show_bytes(need)}"] if need is not None else []
    room += [f"{show_bytes(free)} free"] if free is not None else []
    what = f"cannot write {path.name}: {reason}" + (f" ({', '.join(room)})" if room else "")
    if number in PASSING:
        return DiskFull(what, str(path), fix, need=need, free=free, errno=number)
    return TopcoatError(what, str(path), fix)
