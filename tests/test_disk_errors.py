"""Whatever a disk says becomes a message with the path, the room and what to do."""

import errno
import os

import pytest

from topcoat.disk_errors import LASTING, PASSING, DiskFull, disk_error


@pytest.mark.parametrize("number", [*PASSING, *LASTING, errno.ENOLCK])
def test_every_disk_error_says_path_need_free_and_what_to_do(tmp_path, number):
    error = disk_error(OSError(number, os.strerror(number)), tmp_path / "step-00000120", 312 * 2**20)
    assert "cannot write step-00000120: " in str(error)
    assert "need 312.0 MiB, " in str(error)
    assert " free" in str(error)
    assert f"where: {tmp_path}/step-00000120" in str(error)
    assert error.problems[0].fix
    assert isinstance(error, DiskFull) == (number in PASSING)
