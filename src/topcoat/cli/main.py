"""topcoat: the command line. Finds the verb, runs it, and turns whatever it raises into one message and an exit code.

0 done or yes, 1 no or refused, 2 wrong input, 70 a bug, 130 interrupted. `topcoat --help` imports no verb.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from topcoat.cli.output import error_json, make_streams_safe, print_json, print_problems
from topcoat.cli.verbs import GROUPS, VERBS
from topcoat.errors import Interrupted, TopcoatError

BUG = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE ended
HELP = ("--help", "-h", "help")


def main() -> None:
    """The entry point of the `topcoat` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. `--debug` anywhere lets errors show where they come from."""
    make_streams_safe()
    debug = "--debug" in arguments or bool(os.environ.get("TOPCOAT_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_stdout()
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"), arguments)
    except TopcoatError as error:
        if debug:
            _print_traceback()
        return _fail(error, arguments)
    except Exception as error:  # the one place that catches everything: a bug is said in one line
        if debug:
            _print_traceback()
        return _fail(_unexpected(error, debug), arguments, BUG)
    return code


def dispatch(arguments: Sequence[str]) -> int:
    """Run the verb that `arguments` name. Raises TopcoatError for a wrong verb or wrong options."""
    if not arguments or (arguments[0] in HELP and len(arguments) == 1):
        print(help_text())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"topcoat {_version()}")
        return 0
    verb, rest = arguments[0], list(arguments[1:])
    if verb in HELP:  # topcoat help train
        verb, rest = rest[0], [*rest[1:], "--help"]
    if verb not in VERBS:
        raise _wrong_verb(verb)
    if verb in GROUPS:
        return _dispatch_group(verb, rest)
    return run_verb(verb, import_module(f"topcoat.cli.{verb}").command, rest)


def _dispatch_group(group: str, arguments: list[str]) -> int:
    """Run a verb of a group, such as `data show`; without one, say which there are."""
    commands: dict[str, str] = import_module(f"topcoat.cli.{group}").COMMANDS
    if not arguments or arguments[0] in HELP:
        print(group_help(group, commands))
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in commands:
        near = difflib.get_close_matches(verb.lower(), commands, n=2)
        fix = f"did you mean {' or '.join(near)}?" if near else f"topcoat {group} takes {', '.join(commands)}"
        raise TopcoatError(f"{verb!r} is no verb of topcoat {group}", f"topcoat {group}", fix)
    return run_verb(f"{group} {verb}", import_module(f"topcoat.cli.{group}_{verb}").command, rest)


def run_verb(verb: str, function: Callable[..., Any], arguments: list[str]) -> int:
    """Parse `arguments` by the signature of `function`, call it, and return its exit code (None is 0)."""
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command(verb, context_settings={"help_option_names": ["-h", "--help"]})(function)
    command: Any = typer.main.get_command(app)
    usage_error: Any = typer.BadParameter.__mro__[1]  # click's UsageError, whichever click this typer brings
    try:
        with command.make_context(f"topcoat {verb}", arguments) as context:
            code = command.invoke(context)
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort as stopped:
        raise KeyboardInterrupt from stopped
    except usage_error as error:
        raise TopcoatError(error.format_message(), f"topcoat {verb}", f"topcoat {verb} --help") from error
    return code if isinstance(code, int) else 0


def help_text() -> str:
    """What `topcoat --help` prints."""
    width = max(map(len, VERBS))
    lines = [
        "Usage: topcoat VERB [OPTIONS]",
        "",
        "Fine-tune language models with LoRA and QLoRA on one GPU or a plain CPU, and prove that it holds.",
        "",
        "Verbs:",
        *(f"  {verb:<{width}}  {said}" for verb, said in VERBS.items()),
        "",
        "Options:",
        f"  {'--help':<{width + 2}}this page; topcoat VERB --help says what a verb takes",
        f"  {'--version':<{width + 2}}the version of topcoat",
        f"  {'--debug':<{width + 2}}with any verb: show the traceback of an error",
        "",
        "Start with: topcoat demo, or topcoat init --model PATH --data FILE",
    ]
    return "\n".join(lines)


def group_help(group: str, commands: dict[str, str]) -> str:
    """What `topcoat GROUP --help` prints."""
    width = max(map(len, commands))
    lines = [
        f"Usage: topcoat {group} VERB [OPTIONS]",
        "",
        f"{VERBS[group][0].upper()}{VERBS[group][1:]}.",
        "",
        "Verbs:",
        *(f"  {verb:<{width}}  {said}" for verb, said in commands.items()),
        "",
        f"topcoat {group} VERB --help says what a verb takes",
    ]
    return "\n".join(lines)


def _wrong_verb(verb: str) -> TopcoatError:
    if verb.startswith("-"):
        return TopcoatError(f"{verb} is no option of topcoat itself", "topcoat", "write the verb first; topcoat --help")
    if verb.endswith((".yaml", ".yml")):
        return TopcoatError(f"{verb} is a recipe, not a verb", "topcoat", f"topcoat train {verb}")
    near = difflib.get_close_matches(verb.lower(), VERBS, n=2)
    fix = f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(VERBS)}"
    return TopcoatError(f"{verb!r} is no verb of topcoat", "topcoat", fix)


def _fail(error: TopcoatError, arguments: Sequence[str], code: int | None = None) -> int:
    """Say `error` on stderr, and as JSON on stdout where JSON was asked for; its exit code."""
    code = error.exit_code if code is None else code
    try:
        print_problems(error.problems)
        if "--json" in arguments:
            print_json(error_json(error, code))
    except BrokenPipeError:
        return _close_stdout()
    return code


def _unexpected(error: Exception, debug: bool) -> TopcoatError:
    text = str(error).strip().split("\n")[0]
    what = f"unexpected error {type(error).__name__}" + (f": {text}" if text else "")
    return TopcoatError(what, _last_own_line(error), "" if debug else "run again with --debug for the traceback")


def _last_own_line(error: Exception) -> str:
    """The last line of topcoat's own code that the error went through."""
    package = Path(__file__).parents[1]  # a folder called topcoat may hold other people's code, as a clone does
    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(package):
            place = f"topcoat/{file.relative_to(package).as_posix()} line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _close_stdout() -> int:
    """The reader of our output is gone (`| head`): write the rest nowhere and leave quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("topcoat")
    except PackageNotFoundError:
        return "(run from its source folder, not installed)"


if __name__ == "__main__":
    main()
