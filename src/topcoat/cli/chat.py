"""topcoat chat: talk to a model or a finished run in the terminal, answers streaming as they are made."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_problems
from topcoat.cli.process import model_of, prepare_process
from topcoat.errors import TopcoatError

HELP = """/adapter off   answer with the base alone; /adapter on switches back
/system TEXT   set the system message and start over
/reset         forget the conversation
/exit          leave (or Ctrl-D)"""


def command(
    what: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="run folder, model directory, .gguf or hub id")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="sample from this share of probability")] = 1.0,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
) -> int:
    """Chat with a model, or with a run's adapter on its base. /help lists what can be typed besides messages."""
    console = make_console()
    prepare_process(model_of(what), console)

    from topcoat.runs.conversation import Chat, Sampling, open_chat

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    chat: Chat = open_chat(what, lambda text: console.print(text, style="dim", markup=False))
    chat.start(system)
    if sys.stdin.isatty():
        console.print("type a message; /help for more, Ctrl-D to leave", style="dim")
    while (line := _read()) is not None:
        if line.startswith("/"):
            if line.split()[0] in ("/exit", "/quit"):
                break
            console.print(_obey(chat, line), style="dim", markup=False)
        elif line:
            try:
                chat.answer(line, _print_piece, sampling)
                print(flush=True)
            except KeyboardInterrupt:  # stops this answer, not the chat
                print(flush=True)
            except TopcoatError as error:  # the conversation has become too long, or the template refuses it
                print_problems(error.problems)
                console.print("/reset forgets the conversation and starts anew", style="dim")
    return 0


def _read() -> str | None:
    """The next line typed, or None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _obey(chat: object, line: str) -> str:
    """Do what a slash command says; returns what to tell."""
    from topcoat.runs.conversation import Chat

    assert isinstance(chat, Chat)
    verb, _, rest = line.partition(" ")
    if verb == "/adapter" and rest.strip() in ("on", "off"):
        return chat.switch(rest.strip() == "on")
    if verb == "/reset":
        chat.start(chat.system)
        return "forgotten"
    if verb == "/system":
        chat.start(rest.strip() or None)
        return "system message set" if rest.strip() else "system message removed"
    if verb == "/help":
        return HELP
    return f"{line!r} is no command; /help lists them"
