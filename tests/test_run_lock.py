"""A run folder has one writer, and its lock dies with that process."""

import os

import pytest

from topcoat.errors import TopcoatError
from topcoat.run_lock import RunLock


def test_a_second_writer_is_refused_by_the_pid_of_the_first(tmp_path):
    with RunLock(tmp_path / "run"):
        with pytest.raises(TopcoatError) as caught, RunLock(tmp_path / "run"):
            pytest.fail("not reached")
        assert f"is being written by process {os.getpid()}" in str(caught.value)
        assert f"kill {os.getpid()}" in str(caught.value)
    with RunLock(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        RunLock(tmp_path).__enter__()
        os.write(told, b"x")
        os.read(os.pipe()[0], 1)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(TopcoatError, match=f"process {child}"), RunLock(tmp_path):
        pytest.fail("not reached")
    os.kill(child, 9)
    os.waitpid(child, 0)
    with RunLock(tmp_path):
        pass


def test_a_worker_forked_under_the_lock_does_not_keep_it(tmp_path):
    go_on, stop = os.pipe()
    with RunLock(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(stop)
            os.read(go_on, 1)
            os._exit(0)
    with RunLock(tmp_path):
        os.close(stop)
    os.waitpid(child, 0)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(TopcoatError, match="a part of the path is a file"), RunLock(tmp_path / "run"):
        pytest.fail("not reached")
