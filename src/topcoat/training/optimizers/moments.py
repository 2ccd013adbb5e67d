"""The two moments of AdamW as flat vectors: in memory, or in a file that is mapped and let go of slice by slice.

On a disk they cost 8 bytes a parameter of room and about 2 MiB of memory. Each step reads and writes all of it once,
so a step takes at least 16 bytes a parameter / the disk's bandwidth; on a fast disk that is seconds for a model whose
full tuning would otherwise not fit at all. A page that was let go of is the system's to write back and to forget.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
from pathlib import Path

import torch

from topcoat.disk_errors import DiskFull, disk_error, free_bytes
from topcoat.errors import TopcoatError
from topcoat.files import CHUNK_BYTES
from topcoat.training.optimizers.sizes import SLICE

NAME = "optimizer moments"


class MemoryMoments:
    """Both vectors on the parameters' device, updated whole."""

    slice = sys.maxsize

    def __init__(self, size: int, device: torch.device) -> None:
        self.first = torch.zeros(size, device=device)
        self.second = torch.zeros(size, device=device)

    def release(self) -> None:
        """Nothing can be given back."""


class FileMoments:
    """Both vectors in one file in `folder`, mapped into memory; `release` lets go of what was touched.

    The file has no name: it goes with the process however that ends, nobody else can open it, and its room is taken
    when it is made, so that a disk that cannot hold it says so before the first step (a page that finds no room later
    would end the process without a word).

    Raises:
        DiskFull: the disk has no room for it.
        TopcoatError: the folder cannot be written.
    """

    slice = SLICE

    def __init__(self, size: int, folder: Path) -> None:
        n_bytes = 4 * size
        self._map = _map_new_file(folder, 2 * n_bytes)
        self.first = torch.frombuffer(self._map, dtype=torch.float32, count=size)
        self.second = torch.frombuffer(self._map, dtype=torch.float32, count=size, offset=n_bytes)

    def release(self) -> None:
        """Drop the pages from this process; what was written is in the file."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _map_new_file(folder: Path, n_bytes: int) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".topcoat-moments-", buffering=0) as file:
            free = free_bytes(folder)
            if free is not None and free < n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _take_room(file.fileno(), n_bytes)
            return mmap.mmap(file.fileno(), n_bytes)
    except OSError as error:
        raise _explained(disk_error(error, folder / NAME, n_bytes)) from error


def _take_room(descriptor: int, n_bytes: int) -> None:
    """Reserve the bytes; where the file system cannot do that ahead of writing, write zeros."""
    if sys.platform == "linux":
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    written = 0
    zeros = memoryview(bytes(CHUNK_BYTES))
    while written < n_bytes:
        written += os.write(descriptor, zeros[: n_bytes - written])


def _explained(error: TopcoatError) -> TopcoatError:
    """The same error with the setting that names another folder."""
    problem = error.problems[0]
    fix = f"{problem.fix}; train.optimizer_folder names the folder, and optimizer: adamw keeps the moments in memory"
    if isinstance(error, DiskFull):
        return DiskFull(problem.what, problem.where, fix, need=error.need, free=error.free, errno=error.errno)
    return TopcoatError(problem.what, problem.where, fix)


Moments = MemoryMoments | FileMoments
