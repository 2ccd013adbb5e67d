"""topcoat advise: prompt, retrieval or tuning; QLoRA, LoRA or full; and the recipe, each step with its reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.errors import TopcoatError

if TYPE_CHECKING:
    from topcoat.recipe.advice import Question
    from topcoat.runs.advising import Told

MORE_QUESTIONS = {
    "model": "Which model? (a directory, a .gguf file, or a name such as llama-3.1-8b)",
    "data": "Which file has the examples, if there is one?",
    "device": "On which device? (auto is this machine; or such as rtx4090)",
}
FLAGS = "--task --prompted --rows --quality --changes --serve --model --data --device"


def command(
    subject: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="take model and data from this recipe, such as mine.yaml")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="what should get better, by commas: style, task, domain, facts, latency, cost, privacy"),
    ] = None,
    prompted: Annotated[
        str | None, typer.Option(help="was the best prompt scored: enough, short, no", metavar="ANSWER")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="examples there are, if no file is given", min=0)] = None,
    quality: Annotated[str | None, typer.Option(help="of the examples: curated, checked, unchecked")] = None,
    changes: Annotated[
        str | None, typer.Option(help="how often the knowledge changes: never, yearly, monthly, daily")
    ] = None,
    serve: Annotated[str | None, typer.Option(help="how it is served: merged, many, gguf, undecided")] = None,
    model: Annotated[str | None, typer.Option(help="model directory, .gguf file or known name", metavar="PATH")] = None,
    data: Annotated[str | None, typer.Option(help="file of examples", metavar="FILE")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, or a device such as rtx4090", metavar="NAME")] = None,
    budget: Annotated[str | None, typer.Option(help="memory a run may take, such as 6GiB", metavar="SIZE")] = None,
    write: Annotated[Path | None, typer.Option("-o", "--recipe", help="write the recipe to this file")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the recipe if it is there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and ask nothing")] = False,
) -> None:
    """Say whether a prompt, retrieval or tuning fits a task, which kind of tuning, and with which recipe.

    On a terminal it asks for what no flag says; Enter is "I do not know". Where the facts do not decide, it says what
    to measure first. Nothing is loaded.
    """
    console = make_console(as_json)
    given: dict[str, Any] = {
        "task": task,
        "prompted": prompted,
        "rows": rows,
        "quality": quality,
        "changes": changes,
        "serve": serve,
        "model": model,
        "data": data,
        "device": device,
    }
    if write is not None and write.exists() and not force:
        raise TopcoatError(f"{write} is there already", fix="write another one with -o NAME.yaml, or add --force")
    told = _told(subject, given, budget, as_json, console.input)

    from topcoat.cli.advise_text import as_plain, recipe_for, show
    from topcoat.runs.advising import advise

    advised = advise(told)
    recipe = recipe_for(advised, told, write or Path("recipe.yaml"))
    show(advised, told, recipe, console)
    if recipe is not None and write is not None:
        from topcoat.files import write_file

        write_file(write, recipe)
        console.print(f"\nwrote {write}; train with: topcoat train {write}", style="green", markup=False)
    if as_json:
        print_json(as_plain(advised, told, recipe, write))


def _told(
    subject: str | None, given: dict[str, Any], budget: str | None, quiet: bool, read: Callable[[str], str]
) -> Told:
    """What flags, a recipe and answers say. Raises TopcoatError for words that are none, and where nothing is said."""
    from topcoat.recipe.advice import load_advice
    from topcoat.runs.advising import Told

    questions = load_advice().questions
    if subject is not None:
        from topcoat.recipe.load import load_recipe

        recipe = load_recipe(Path(subject), check_files=False)
        given["model"] = given["model"] or recipe.model.path
        given["data"] = given["data"] or recipe.data.train
    for name in MORE_QUESTIONS:
        if given[name] is not None and not given[name].strip():
            raise TopcoatError(f"--{name} is empty", f"--{name}", "name one, or leave it out")
    for name, question in questions.items():
        if isinstance(given[name], str):
            given[name] = _words(question, given[name], f"--{name}")
    asks = sys.stdin.isatty() and not quiet
    if not asks and subject is None and not given["task"]:
        raise TopcoatError(
            "nothing says what the task is, and there is no terminal to ask on",
            "--task",
            f"name it: --task {','.join(questions['task'].choices)} (one or several); the flags are {FLAGS}",
        )
    if asks:
        _ask_for_the_rest(questions, given, read)
    given["task"] = given["task"] or frozenset()
    given["device"] = given["device"] or "auto"
    return Told(**given, budget=budget, recipe=subject is not None)


def _words(question: Question, text: str, where: str) -> Any:
    """The fact that a person's words mean; None for an empty answer."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if question.number:
        number = text.strip().replace(",", "").replace("_", "")
        if number and not number.isdigit():
            raise TopcoatError(f"{text!r} is no number", where, "write a number such as 500")
        return int(number) if number else None
    for word in words:
        question.require(word, where)
    if question.many:
        return frozenset(words)
    if len(words) > 1:
        raise TopcoatError(f"{text!r} is more than one answer", where, f"name one of {', '.join(question.choices)}")
    return words[0] if words else None


def _ask_for_the_rest(questions: dict[str, Question], given: dict[str, Any], read: Callable[[str], str]) -> None:
    """Ask for every fact that is not given yet, again where an answer is none; `read` asks with a prompt."""
    for name, question in questions.items():
        if given[name] is not None or (name == "rows" and given["data"]):
            continue
        lines = [question.ask, *(f"  {word}: {meaning}" for word, meaning in question.choices.items())]
        hint = "several by commas, Enter: not known" if question.many else "Enter: not known"
        while True:
            try:
                given[name] = _words(question, read("\n".join([*lines, f"({hint}) > "])), name)
                break
            except TopcoatError as error:
                print(error)
    for name, asked in MORE_QUESTIONS.items():
        if given[name] is None:
            given[name] = read(f"{asked}\n(Enter: {'auto' if name == 'device' else 'none'}) > ").strip() or None
