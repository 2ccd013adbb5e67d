"""Runs as processes: stopped by signals, killed outright, started twice, on a disk that fills up."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from topcoat.recipe.load import dump_recipe, recipe_from_dict

STEPS = 60
LONG = {"train": {"max_steps": STEPS, "save_every": 4}, "evaluate": {"every": 10}, "adapter": {"lora_dropout": 0.1}}


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    """recipe_file("run", train={...}): the recipe written to a file; returns the file and the run's folder."""

    def write(output="run", **sections):
        recipe = recipe_from_dict(tiny_recipe(output, **{**LONG, **sections}))
        file = tmp_path / f"{Path(output).name}.yaml"
        file.write_text(dump_recipe(recipe))
        return file, Path(recipe.output)

    return write


@pytest.fixture(scope="session")
def whole_run(nursery, tmp_path_factory):
    """Kept between the tests: the recipe's long run, never interrupted."""
    return tmp_path_factory.mktemp("long") / "whole"


@pytest.fixture
def expected(nursery, whole_run, recipe_file, trace):
    """The trace of the run that was never interrupted."""
    if not (whole_run / "report.html").exists():
        file, _ = recipe_file(whole_run)
        log = whole_run.with_suffix(".log")
        assert nursery.wait(nursery.start("train", str(file), log=log)) == 0, log.read_text()
    return trace(whole_run)


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.exists() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops_and_resume_goes_on(
    number, code, expected, nursery, recipe_file, trace, until, tmp_path
):
    file, folder = recipe_file("run")
    log = tmp_path / "log"
    pid = nursery.start("train", str(file), "--json", log=log)
    until(lambda: steps_done(folder) > 7)
    os.kill(pid, number)
    assert nursery.wait(pid) == code
    said = log.read_text()
    name = signal.Signals(number).name
    assert f"{name}: saving at the end of this step, then stopping; once more ends it at once" in said
    assert "Traceback" not in said
    answer = json.loads(said.splitlines()[-1])
    assert (answer["ok"], answer["exit_code"]) == (False, code)
    [problem] = answer["problems"]
    done = steps_done(folder)
    assert problem == {
        "what": f"{name}: saved step {done}",
        "where": str(folder),
        "fix": "the same command with --resume continues",
    }
    assert (folder / "checkpoints" / f"step-{done:08d}").is_dir()
    assert nursery.wait(nursery.start("train", str(file), "--resume", log=log)) == 0, log.read_text()
    assert f"resuming at step {done} of {STEPS}" in log.read_text()
    assert trace(folder) == expected


def test_a_second_signal_ends_it_at_once(expected, nursery, recipe_file, trace, until, tmp_path):
    file, folder = recipe_file("run")
    log = tmp_path / "log"
    slow = "import time, topcoat.training.objectives.table as t; once = t.OBJECTIVES['sft']\n"
    slow += "def loss(*parts):\n    time.sleep(0.2)\n    return once.loss(*parts)\n"
    slow += "t.OBJECTIVES['sft'] = once._replace(loss=loss)\n"
    pid = nursery.start("train", str(file), log=log, before=slow)
    until(lambda: steps_done(folder) > 1)
    os.kill(pid, signal.SIGINT)
    until(lambda: "SIGINT: saving at the end of this step" in log.read_text())
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    assert nursery.wait(pid) == 143
    assert time.monotonic() - began < 2
    assert "SIGTERM again: leaving now; the last checkpoint stands" in log.read_text()
    assert nursery.wait(nursery.start("train", str(file), "--resume", log=log)) == 0
    assert trace(folder) == expected


def kill_and_resume(nursery, file, folder, log, delay) -> None:
    """Start, kill -9 after `delay` seconds, and type the same command with --resume until it is done."""
    pid = nursery.start("train", str(file), log=log)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    nursery.wait(pid)
    again = ["--resume"] if folder.exists() else []  # killed before it had done anything
    assert nursery.wait(nursery.start("train", str(file), *again, log=log)) == 0, log.read_text()


def killed_runs(how_many, seed, expected, nursery, recipe_file, trace, tmp_path):
    began = time.monotonic()
    file, folder = recipe_file("timed")
    assert nursery.wait(nursery.start("train", str(file), log=tmp_path / "log")) == 0
    duration = time.monotonic() - began
    draw = random.Random(seed)
    for number in range(how_many):
        file, folder = recipe_file(f"killed-{number}")
        kill_and_resume(nursery, file, folder, tmp_path / f"log-{number}", draw.random() * duration)
        assert trace(folder) == expected
        left = [path.name for path in folder.rglob("*") if ".tmp-" in path.name]
        assert not left


def test_kill_9_at_any_moment_loses_nothing(expected, nursery, recipe_file, trace, tmp_path):
    killed_runs(5, 1, expected, nursery, recipe_file, trace, tmp_path)


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_many_times(expected, nursery, recipe_file, trace, tmp_path):
    killed_runs(30, 2, expected, nursery, recipe_file, trace, tmp_path)


def test_a_run_killed_while_the_model_loads_starts_again(nursery, recipe_file, tmp_path):
    file, folder = recipe_file("run", train={"max_steps": 2})
    die = "import topcoat.runs.rounding as r, os; r.load_model = lambda settings: os.kill(os.getpid(), 9)"
    log = tmp_path / "log"
    assert nursery.wait(nursery.start("train", str(file), log=log, before=die)) == -9
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert nursery.wait(nursery.start("train", str(file), "--resume", log=log)) == 0, log.read_text()


def test_one_folder_has_one_writer(nursery, recipe_file, until, tmp_path):
    file, folder = recipe_file("run", train={"max_steps": 4000})
    first = nursery.start("train", str(file), log=tmp_path / "first")
    until(lambda: steps_done(folder) > 1)
    for arguments, said in (
        (["--resume"], f"{folder} is being written by process {first}"),
        ([], f"{folder} holds another run"),
    ):
        log = tmp_path / f"second{len(arguments)}"
        assert nursery.wait(nursery.start("train", str(file), *arguments, log=log)) == 2
        assert said in log.read_text()
        assert "fix:" in log.read_text()
    before = steps_done(folder)
    until(lambda: steps_done(folder) > before)  # the first goes on undisturbed
    os.kill(first, signal.SIGTERM)
    assert nursery.wait(first) == 143


TMPFS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
if libc.unshare(0x10000000 | 0x00020000) != 0:
    os._exit(99)
for name, text in (("setgroups", "deny"), ("uid_map", f"{{uid}} {{uid}} 1"), ("gid_map", f"{{gid}} {{gid}} 1")):
    with open(f"/proc/self/{{name}}", "w") as file:
        file.write(text)
libc.mount(b"none", b"/", None, 0x44000, None)
os.makedirs({folder!r}, exist_ok=True)
if libc.mount(b"tmpfs", {folder!r}.encode(), b"tmpfs", 0, b"size={size}") != 0:
    os._exit(99)
"""


def test_a_full_disk_pauses_the_run_and_it_goes_on(expected, nursery, recipe_file, trace, until, tmp_path):
    """The disk holds a file that takes all room but a few steps' worth; the run's own listener frees it."""
    disk = tmp_path / "disk"
    file, _ = recipe_file(disk / "run")
    before = TMPFS.format(folder=str(disk), size="2m") + (
        "import topcoat.cli.live as live, shutil\n"
        "from pathlib import Path\n"
        "say = live.Terminal.say\n"
        f"disk, out = Path({str(disk)!r}), Path({str(tmp_path / 'out')!r})\n"
        "def heard(self, text):\n"
        "    say(self, text)\n"
        "    if 'Training is paused' in text:\n"
        "        (disk / 'ballast').unlink()\n"
        "live.Terminal.say = heard\n"
        "import topcoat.training.loop as loop\n"
        "one = loop._one_step\n"
        "def step(run, guard):\n"
        "    if run.progress.step == 9:\n"
        "        try:\n"
        "            with open(disk / 'ballast', 'wb', buffering=0) as f:\n"
        "                while f.write(bytes(512)): pass\n"
        "        except OSError:\n"
        "            pass\n"
        "    one(run, guard)\n"
        "loop._one_step = step\n"
        "import topcoat.training.checkpoint as c\n"
        "c.FIRST_PAUSE_S = 0.2\n"
        "import atexit\n"
        "inner = run\n"
        "def run(arguments):\n"
        "    code = inner(arguments)\n"
        "    shutil.copytree(disk / 'run', out)\n"
        "    return code\n"
    )
    log = tmp_path / "log"
    code = nursery.wait(nursery.start("train", str(file), log=log, before=before))
    if code == 99:
        pytest.skip("this system forbids user namespaces")
    said = log.read_text()
    assert code == 0, said
    assert "no space is left on the disk" in said
    assert "free)" in said
    assert "Training is paused and goes on by itself once there is room; Ctrl-C stops it" in said
    assert trace(tmp_path / "out") == expected


def test_the_same_seed_gives_the_same_adapter_in_another_process_folder_and_hash_seed(tiny_recipe, trace, tmp_path):
    processes = []
    for seed in ("1", "271828"):
        folder = tmp_path / f"place {seed}"
        folder.mkdir()
        recipe = folder / "recipe.yaml"
        recipe.write_text(dump_recipe(recipe_from_dict(tiny_recipe(folder / "run", adapter={"lora_dropout": 0.1}))))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "topcoat.cli.main", "train", str(recipe)],
                cwd=folder,
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, other = (trace(tmp_path / f"place {seed}" / "run") for seed in ("1", "271828"))
    assert one == other
    assert one["weights"]
