"""The power is cut after any call of a save: a good checkpoint is there when it comes back, and the next save works.

The calls of one save are recorded into a model of a disk that forgets what was not synced; after each call, states that
such a disk may be in are built and resumed from. The scene is that of test_checkpoint_crashes.py.

Source: Pillai et al. 2014, "All File Systems Are Not Created Equal" (OSDI), which builds crash states the same way.
"""

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_save import CALLS, assert_goes_on, assert_whole, run, save


class Disk:
    """A model of a disk that forgets: names last once their folder is synced, bytes once their file is.

    A folder is {name: node}; a file is bytes. Each keeps what is durable and, in order, what is pending.
    """

    def __init__(self) -> None:
        self.folders: dict[int, dict[str, int]] = {}
        self.pending_names: dict[int, list[tuple]] = {}
        self.files: dict[int, tuple[bytes, bytes]] = {}  # durable, current

    def load(self, path: Path) -> int:
        """Everything below `path`, durable."""
        node = path.stat().st_ino
        if path.is_dir():
            self.folders[node] = {child.name: self.load(child) for child in path.iterdir()}
            self.pending_names[node] = []
        else:
            self.files[node] = (path.read_bytes(),) * 2
        return node

    def build(self, node: int, path: Path, draw: random.Random, mode: str) -> None:
        """One state the disk may be in after the power came back."""
        if node in self.files:
            durable, current = self.files[node]
            states = [durable, current, bytes(len(current)), current[: draw.randint(0, len(current))], b""]
            path.write_bytes(durable if durable == current else draw.choice(states))
            return
        names = dict(self.folders[node])
        pending = self.pending_names[node]
        if mode == "in order":  # a journal: what came first lasts first
            pending = pending[: draw.randint(0, len(pending))]
        else:
            pending = [change for change in pending if draw.random() < 0.5]
        for kind, name, more in pending:
            if kind == "link":
                names[name] = more
            elif kind == "rename" and name in names:
                names[more] = names.pop(name)
            elif kind == "unlink":
                names.pop(name, None)
        path.mkdir()
        for name, child in names.items():
            self.build(child, path / name, draw, mode)


def record(folder: Path, work: Callable[[], None], each: Callable[[Disk, int], None], monkeypatch) -> None:
    """Run `work`, and hand the model to `each` after every call that changes the disk."""
    disk, count = Disk(), 0
    disk.load(folder)
    real = {name: getattr(os, name) for name in CALLS}

    def place(path: Any, dir_fd: int | None = None) -> tuple[int, str]:
        path = Path(path)
        parent = os.stat(path.parent) if dir_fd is None else os.fstat(dir_fd)
        return parent.st_ino, path.name

    def act(name: str, call: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        nonlocal count
        if name in ("unlink", "rmdir", "rename"):
            parent, child = place(args[0], kwargs.get("dir_fd"))
            change = ("rename", child, Path(args[1]).name) if name == "rename" else ("unlink", child, None)
            disk.pending_names[parent].append(change)
        answer = call(*args, **kwargs)
        if name == "mkdir" or (name == "open" and args[1] & os.O_CREAT):
            node = os.stat(args[0]).st_ino if name == "mkdir" else os.fstat(answer).st_ino
            parent, child = place(args[0])
            disk.pending_names[parent].append(("link", child, node))
            if name == "mkdir":
                disk.folders[node], disk.pending_names[node] = {}, []
            else:
                disk.files[node] = (b"", b"")
        elif name in ("write", "posix_fallocate", "fsync"):
            status = os.fstat(args[0])
            node = status.st_ino
            if stat.S_ISDIR(status.st_mode):
                names = disk.folders[node]
                names.clear()
                here = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
                names.update({entry.name: entry.stat().st_ino for entry in here.iterdir()})
                disk.pending_names[node] = []
            else:
                current = Path(os.readlink(f"/proc/self/fd/{args[0]}")).read_bytes()
                disk.files[node] = (current if name == "fsync" else disk.files[node][0], current)
        elif name == "open":
            return answer
        count += 1
        each(disk, count)
        return answer

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, lambda *a, _n=name, **k: act(_n, real[_n], a, k))
        work()


def power_loss(tmp_path: Path, monkeypatch, states_each: int, steps: tuple[int, int]) -> int:
    """Cut the power after every call of a save; every state must resume. Returns how many states were built."""
    folder = tmp_path / "run"
    first, second = steps
    save(run(folder), first)
    states: list[Path] = []
    draw = random.Random(3)
    root = folder.stat().st_ino

    def each(disk: Disk, count: int) -> None:
        with monkeypatch.context() as patch:
            for name, call in unpatched.items():
                patch.setattr(os, name, call)
            for index in range(states_each):
                state = tmp_path / f"state-{count}-{index}"
                disk.build(root, state, draw, ["in order", "any order"][index % 2])
                states.append(state)

    unpatched = {name: getattr(os, name) for name in CALLS}
    record(folder, lambda: save(run(folder), second, seed=1), each, monkeypatch)
    found = [assert_whole(run(state), first, second) for state in states]
    assert set(found) == {first, second}
    assert set(found[-states_each:]) == {second}
    for state in states[:: max(1, len(states) // 30)]:
        assert_goes_on(state)
    return len(states)


@pytest.mark.parametrize("second", [20, 10], ids=["new", "again"])
def test_a_power_cut_after_any_call_leaves_a_good_checkpoint(tmp_path, monkeypatch, second):
    assert power_loss(tmp_path, monkeypatch, 4, (10, second)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("second", [20, 10], ids=["new", "again"])
def test_a_power_cut_in_thousands_of_states_leaves_a_good_checkpoint(tmp_path, monkeypatch, second):
    assert power_loss(tmp_path, monkeypatch, 80, (10, second)) > 2000
