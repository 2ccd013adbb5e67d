"""One writer for a run folder."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from topcoat.disk_errors import disk_error
from topcoat.errors import TopcoatError
from topcoat.files import make_folder


class RunLock:
    """An flock on `<run>/.lock`, which the system drops when the process dies.

    The file holds the pid for the message, and stays: only its holder may `remove` it, from a folder left unused.
    """

    NAME = ".lock"

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / self.NAME
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        """Raises TopcoatError: another process writes this run, or the folder cannot be locked."""
        while not self._lock():
            continue
        return self

    def _lock(self) -> bool:
        """Open and lock the file; False if its holder removed it in between, so that it is not the one to lock."""
        try:
            make_folder(self.run)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_error(error, self.path, None) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise TopcoatError(
                f"{self.run} is being written by process {holder}",
                str(self.path),
                f"wait for it, stop it (kill {holder}), or use another output folder",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise disk_error(error, self.path, None) from error
        self._descriptor = descriptor
        return True

    def remove(self) -> None:
        """Delete the file while it is held: for a folder in which nothing was written."""
        with suppress(OSError):
            os.unlink(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing alone would leave it with forked children
        os.close(self._descriptor)
        self._descriptor = -1
