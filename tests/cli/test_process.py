"""Process-wide choices: made once, said in one line, and not made where the user made them or refused them."""

import os

import pytest

from topcoat.cli.output import make_console
from topcoat.cli.process import prepare_process

NAMES = (
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "TOPCOAT_HUGE_PAGES",  # kernels/huge_pages.py reads it
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """None of the variables is set, and torch's threads stay as they are."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    for name in (*NAMES, "GOMP_SPINCOUNT", "TOPCOAT_KEEP_ENV"):
        monkeypatch.setenv(name, "x")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.delitem(os.sys.modules, "torch", raising=False)


def test_what_is_set_is_said(capsys):
    made = prepare_process("./local", make_console())
    assert tuple(made) == NAMES
    assert all(os.environ[name] == value for name, value in made.items())
    said = capsys.readouterr().out
    assert said.startswith("process: OMP_NUM_THREADS=")
    assert said.count("\n") == 1
    assert "TOPCOAT_KEEP_ENV=1" in said


def test_beside_other_work_threads_sleep_instead_of_spinning(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 0.0, 0.0))
    assert prepare_process("./local", make_console())["GOMP_SPINCOUNT"] == "1000"
    assert "GOMP_SPINCOUNT=1000" in capsys.readouterr().out.replace("\n", "")


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in prepare_process(None, make_console())
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_the_hub_is_reachable_only_for_a_hub_id():
    assert "HF_HUB_OFFLINE" not in prepare_process("org/name", make_console())
    assert "HF_HUB_OFFLINE" in prepare_process("./org/name", make_console())


def test_it_can_be_refused(monkeypatch, capsys):
    monkeypatch.setenv("TOPCOAT_KEEP_ENV", "1")
    assert prepare_process(None, make_console()) == {}
    assert capsys.readouterr().out == "process: environment kept as it is (TOPCOAT_KEEP_ENV=1)\n"
    assert "HF_HUB_OFFLINE" not in os.environ
