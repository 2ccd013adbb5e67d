"""The shell around the verbs: help, versions, wrong words, errors and exit codes."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import pytest
import typer

from topcoat.cli import main as shell
from topcoat.cli.verbs import GROUPS, VERBS
from topcoat.errors import Interrupted, Problem, Refused, TopcoatError

TOPCOAT = [sys.executable, "-m", "topcoat.cli.main"]


@pytest.fixture
def verb(monkeypatch):
    """verb(error): makes `topcoat doctor` raise it."""

    def install(error: BaseException) -> None:
        def command(json: Annotated[bool, typer.Option("--json")] = False) -> None:
            raise error

        monkeypatch.setattr("topcoat.cli.doctor.command", command)

    return install


def test_code_in_another_folder_called_topcoat_is_not_ours(topcoat, monkeypatch):
    names: dict = {}
    exec(
        compile("def command(json: bool = False) -> None:\n    raise ValueError", "/a/topcoat/plugin.py", "exec"), names
    )
    monkeypatch.setattr("topcoat.cli.doctor.command", names["command"])
    assert "where: topcoat/cli/main.py line " in topcoat("doctor").err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_help_lists_every_verb(topcoat, arguments):
    done = topcoat(*arguments)
    assert done.code == 0
    for name, said in VERBS.items():
        assert f"  {name} " in done.out
        assert said in done.out
    assert all(len(line) <= 100 for line in done.out.splitlines())


def test_help_imports_nothing_heavy():
    code = "import sys; from topcoat.cli.main import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in eval(done.stderr)}
    assert not loaded & {
        "torch",
        "transformers",
        "pydantic",
        "numpy",
        "pyarrow",
        "matplotlib",
        "ruamel",
        "rich",
        "typer",
    }


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_of_the_table_has_its_file(name):
    assert find_spec(f"topcoat.cli.{name}") is not None


@pytest.mark.parametrize("group", GROUPS)
def test_every_verb_of_a_group_has_its_file(topcoat, group):
    commands = import_module(f"topcoat.cli.{group}").COMMANDS
    for name, said in commands.items():
        assert find_spec(f"topcoat.cli.{group}_{name}") is not None
        assert f"  {name} " in topcoat(group).out
        assert said in topcoat("help", group).out


@pytest.mark.parametrize("name", ["init", "doctor", "schema"])
@pytest.mark.parametrize("form", ["--help", "-h", "help"])
def test_a_verb_says_what_it_takes(topcoat, name, form):
    done = topcoat("help", name) if form == "help" else topcoat(name, form)
    assert done.code == 0
    assert f"topcoat {name}" in done.out


def test_the_version_is_printed(topcoat):
    done = topcoat("--version")
    assert done.code == 0
    assert done.out.startswith("topcoat ")


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["trian"], "'trian' is no verb of topcoat", "did you mean train?"),
        (["Train"], "'Train' is no verb of topcoat", "did you mean train?"),
        (["xyzzy"], "'xyzzy' is no verb of topcoat", f"the verbs are {', '.join(VERBS)}"),
        (["recipe.yaml"], "recipe.yaml is a recipe, not a verb", "topcoat train recipe.yaml"),
        (["--json"], "--json is no option of topcoat itself", "write the verb first; topcoat --help"),
        (["data", "shwo"], "'shwo' is no verb of topcoat data", "did you mean show?"),
        (["data", "xyzzy"], "'xyzzy' is no verb of topcoat data", "topcoat data takes check, show, split"),
        (["data", "show"], "Missing argument 'recipe'", "topcoat data show --help"),
        (["doctor", "--jsn"], "No such option: --jsn", "topcoat doctor --help"),
        (["doctor", "extra"], "Got unexpected extra argument", "topcoat doctor --help"),
        (["init", "--model", "x"], "Missing option '--data'", "topcoat init --help"),
    ],
)
def test_wrong_words_are_answered(topcoat, arguments, what, fix):
    done = topcoat(*arguments)
    assert done.code == 2
    assert what in done.err
    assert f"fix:   {fix}" in done.err
    assert done.out == "" or "--json" in arguments


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TopcoatError("w", "here", "f"), 2),
        (Refused("w", "here", "f"), 1),
        (Interrupted("w", "here", "f"), 130),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (typer.Exit(3), 3),
        (ValueError("strange"), 70),
    ],
)
def test_every_error_has_its_exit_code(topcoat, verb, error, code):
    verb(error)
    done = topcoat("doctor")
    assert done.code == code
    assert "Traceback" not in done.err


def test_an_error_prints_all_its_problems(topcoat, verb):
    verb(TopcoatError.gather([Problem("one [b]", "r.yaml line 3", "do [this]"), Problem("two")]))
    done = topcoat("doctor")
    assert done.err == "one [b]\n  where: r.yaml line 3\n  fix:   do [this]\ntwo\n"
    assert done.out == ""


def test_an_error_is_json_where_json_was_asked_for(topcoat, verb):
    verb(Refused("no fit", "train", "less"))
    done = topcoat("doctor", "--json")
    assert done.json == {"ok": False, "exit_code": 1, "problems": [{"what": "no fit", "where": "train", "fix": "less"}]}
    assert "no fit" in done.err


def test_a_bug_is_one_line_and_a_traceback_with_debug(topcoat, verb):
    verb(ValueError("strange\nsecond line"))
    done = topcoat("doctor")
    assert done.err.splitlines()[0] == "unexpected error ValueError: strange"
    assert "where: topcoat/cli/main.py line " in done.err
    assert "fix:   run again with --debug for the traceback" in done.err
    for arguments in (("doctor", "--debug"), ("--debug", "doctor")):
        done = topcoat(*arguments)
        assert done.code == 70
        assert "Traceback (most recent call last)" in done.err
        assert "run again" not in done.err


def test_a_verb_may_return_its_exit_code(topcoat, monkeypatch):
    monkeypatch.setattr("topcoat.cli.doctor.command", lambda: 1)
    assert topcoat("doctor").code == 1


def test_a_closed_pipe_ends_quietly():
    script = f"{' '.join(TOPCOAT)} schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["{", done.stdout.splitlines()[1]]
    assert done.stdout.splitlines()[1] in ("0", "141")  # 0 where all fitted into the pipe before head left
    assert done.stderr == ""


def test_a_broken_pipe_is_no_bug():
    code = "import sys; from topcoat.cli import schema, main; schema.command = lambda: print('x' * 10**7); "
    code += "sys.exit(main.run(['schema']))"
    script = f'{sys.executable} -c "{code}" | head -c1; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "x 141\n"
    assert done.stderr == ""


def test_characters_the_terminal_lacks_do_not_end_the_run():
    code = "from topcoat.cli.main import run; from topcoat.cli import schema; "
    code += "schema.command = lambda: print('é→'); run(['schema'])"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "\\xe9\\u2192\n"


def test_json_writes_what_json_can_hold(capsys):
    from pathlib import Path

    from topcoat.cli.output import print_json

    print_json({"a": float("nan"), "b": (Path("x"), float("inf")), "c": {"é": 1.5}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": ["x", None], "c": {"é": 1.5}}


def test_the_table_keeps_its_lines_short():
    assert all(len(said) < 85 and said[0].islower() and not said.endswith(".") for said in VERBS.values())
    assert shell.help_text().startswith("Usage: topcoat VERB")
