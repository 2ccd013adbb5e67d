"""Bytes that survive a crash, temporaries that do not, one writer a run, and messages that say need and free."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from topcoat import files
from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.files import discard, make_folder, publish_directory, sha256_file, sweep_temporaries, write_file, write_new


@pytest.fixture
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def fail(monkeypatch, name: str, number: int) -> None:
    def broken(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, name, broken)


def test_a_written_file_holds_what_was_given(tmp_path):
    write_file(tmp_path / "a.json", "größer\n")
    write_file(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]


def test_the_mode_of_a_written_file_follows_the_umask(tmp_path, umask_027):
    write_file(tmp_path / "a", "x")
    assert mode(tmp_path / "a") == 0o640


@pytest.mark.parametrize("call", ["open", "posix_fallocate", "write", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    write_file(path, "old")
    with monkeypatch.context() as patch:
        fail(patch, call, errno.ENOSPC)
        with pytest.raises(DiskFull):
            write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_cannot_reserve_space_still_takes_the_bytes(tmp_path, monkeypatch):
    fail(monkeypatch, "posix_fallocate", errno.EOPNOTSUPP)
    write_file(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_file_larger_than_one_write_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    data = bytes(range(256))
    digest = write_new(tmp_path / "a", [data[:100], b"", memoryview(data)[100:]])
    assert (tmp_path / "a").read_bytes() == data
    assert digest == sha256_file(tmp_path / "a")


def test_sha256_is_that_of_the_system_tool(tmp_path):
    (tmp_path / "a").write_bytes(b"topcoat")
    told = subprocess.run(["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert sha256_file(tmp_path / "a") == told.split()[0]


def test_a_published_directory_has_files_of_the_umask_even_where_the_writer_made_them_private(tmp_path, umask_027):
    final = tmp_path / "run" / "adapter"
    with publish_directory(final) as temporary:
        assert temporary.name.startswith(f"adapter.tmp-{os.getpid()}-")
        (temporary / "sub").mkdir(0o700)
        for path in (temporary / "weights", temporary / "sub" / "more"):
            path.touch(0o600)
        assert not final.exists()
    assert mode(final) == mode(final / "sub") == 0o750
    assert mode(final / "weights") == mode(final / "sub" / "more") == 0o640
    assert list(final.parent.iterdir()) == [final]


def test_every_file_and_folder_is_synced_before_a_directory_is_published(tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    def rename(source, target):
        assert sorted(synced) == sorted(["weights", "sub", "more", source.name])
        synced.append("renamed")
        os.replace(source, target)

    with publish_directory(tmp_path / "adapter") as temporary:
        (temporary / "sub").mkdir()
        for path in (temporary / "weights", temporary / "sub" / "more"):
            path.write_text("by a library that does not sync")
        monkeypatch.setattr(files.os, "fsync", fsync)
        monkeypatch.setattr(files.os, "rename", rename)
    assert synced[-2:] == ["renamed", tmp_path.name]


def test_an_error_while_publishing_leaves_nothing(tmp_path):
    def fill_half():
        with publish_directory(tmp_path / "adapter") as temporary:
            (temporary / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_publishing_says_need_and_free(tmp_path):
    with pytest.raises(DiskFull) as caught, publish_directory(tmp_path / "adapter", need=3 * 2**20):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "cannot write adapter: no space is left on the disk (need 3.0 MiB, " in str(caught.value)
    assert " free)" in str(caught.value)
    assert str(tmp_path / "adapter") in str(caught.value)
    assert caught.value.need == 3 * 2**20
    assert caught.value.free > 0
    assert list(tmp_path.iterdir()) == []


def test_a_directory_whose_rename_may_not_last_is_not_published(tmp_path, monkeypatch):
    real = files.sync_folder

    def broken(folder):
        if folder == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    monkeypatch.setattr(files, "sync_folder", broken)
    with pytest.raises(DiskFull, match="input/output error"), publish_directory(tmp_path / "adapter") as temporary:
        (temporary / "weights").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_publishing_over_what_exists_is_refused(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(TopcoatError, match="adapter exists already"), publish_directory(tmp_path / "adapter"):
        pytest.fail("not reached")


def test_a_link_in_a_published_directory_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir(0o700)
    with pytest.raises(TopcoatError, match="symbolic link"), publish_directory(tmp_path / "adapter") as temporary:
        (temporary / "link").symlink_to(outside)
    assert mode(outside) == 0o700
    assert list(tmp_path.iterdir()) == [outside]


def test_every_folder_made_on_the_way_is_synced_into_its_parent(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_temporaries_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path):
    dead = dead_pid()
    stray = tmp_path / f"step-00000120.tmp-{dead}-0123abcd"
    stray.mkdir()
    (stray / "adapter.safetensors").write_text("x")
    earlier_life = tmp_path / f"a.json.tmp-{os.getpid()}-0123abcd"  # our pid, but not a file we are writing
    earlier_life.write_text("x")
    alive = tmp_path / f"b.json.tmp-{os.getppid()}-0123abcd"
    alive.write_text("x")
    ordinary = tmp_path / "notes.tmp-old"
    ordinary.write_text("x")
    with publish_directory(tmp_path / "adapter") as temporary:
        assert sweep_temporaries(tmp_path) == [earlier_life, stray]
        assert temporary.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "adapter", alive, ordinary])
    assert sweep_temporaries(tmp_path / "not there") == []


def test_sweeping_does_not_follow_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"x.tmp-{dead_pid()}-0123abcd").symlink_to(outside)
    sweep_temporaries(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "precious").exists()


def test_discarding_renames_before_it_deletes(tmp_path, monkeypatch):
    path = tmp_path / "step-00000010"
    path.mkdir()
    (path / "a").write_text("x")
    with monkeypatch.context() as patch:
        fail(patch, "unlink", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            discard(path)
    assert not path.exists()
    assert len(sweep_temporaries(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_importing_files_does_not_import_torch():
    command = [sys.executable, "-c", "import sys, topcoat.files; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0
