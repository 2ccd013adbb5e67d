"""What `topcoat advise` prints: the answer with reasons and sources, the path to it, the recipe; and as JSON."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from topcoat.cli.init import Choice, ModelFacts, data_name, recipe_text
from topcoat.recipe.advice import AdviceRule
from topcoat.runs.advising import Advised, Told
from topcoat.units import show_bytes

SAID = {
    "prompt": "write a prompt; do not tune",
    "rag": "retrieval: search, and put what is found into the prompt; do not tune",
    "tune": "fine-tune",
    "rag+tune": "retrieval for what changes, and fine-tune how it is used",
    "measure": "measure first: the facts do not decide",
    "lora": "LoRA on the weights as they are",
    "qlora": "QLoRA: LoRA on 4-bit weights",
    "full": "full fine-tuning",
    "smaller-model": "a smaller model, or a larger device",
}


def show(advised: Advised, told: Told, recipe: str | None, console: Console) -> None:
    """Everything for people."""

    def say(name: str, text: str, style: str, rule: AdviceRule) -> None:
        console.print(Text.assemble((f"{name:<9}", "bold"), (text, style)))
        if rule.reason != text:
            console.print(f"         {rule.reason}", markup=False)
        console.print(f"         source: {rule.source}", style="dim", markup=False)

    for stage, answer in advised.decision.answers.items():
        for rule in advised.decision.matched(stage):
            say(stage, SAID[answer], "bold green", rule)
        if not advised.decision.matched(stage):
            console.print(Text.assemble((f"{stage:<9}", "bold"), (SAID[answer], "bold green")))
    for rule in _to_measure(advised):
        typed = _typed(rule, advised, told)
        say("measure", typed, "yellow", rule)
        if missing := _to_fill(typed):
            console.print(f"         put your own for {' and '.join(missing)}", style="dim", markup=False)
    for rule in advised.decision.matched("later"):
        say("later", _typed(rule, advised, told) or rule.reason, "", rule)
    console.print()
    console.print(_tree(advised))
    if advised.method and recipe is None:
        console.print("\nno recipe is written without a model and a file of rows that are here", style="yellow")
    if recipe is not None:
        console.print()
        console.print(recipe, markup=False, end="")


def _tree(advised: Advised) -> Tree:
    """The decision path: every rule that was asked, and why it held or not."""
    device = f"{advised.device.says}, {show_bytes(advised.device.memory_bytes)}"
    tree = Tree(Text(f"decision path ({device})", style="bold"))
    branches: dict[str, Tree] = {}
    for step in advised.decision.steps:
        name = step.stage.name
        if name not in branches:
            answer = advised.decision.answers.get(name)
            branches[name] = tree.add(Text(step.stage.title + (f": {answer}" if answer else ""), style="bold"))
        mark, style = ("✓", "green") if step.matched else ("·", "dim")
        branches[name].add(Text(f"{mark} {step.rule.id}: {step.because}", style=style))
    return tree


def recipe_for(advised: Advised, told: Told, write: Path) -> str | None:
    """The recipe as `topcoat init` writes it, with what was decided; None without a method, a model or rows."""
    a = advised.architecture
    if advised.method is None or a is None or told.data is None or told.model is None:
        return None
    if not Path(told.data).is_file():
        return None
    model = _model(advised, told)
    decided = {line.key: Choice(line.text, line.reason) for line in advised.lines}
    facts = ModelFacts(a.kind, a.parameters, None)
    command_line = f"topcoat train {shlex.quote(str(write))}"
    output = f"runs/{data_name(told.data)}"
    return recipe_text(model, told.data, output, command_line, facts=facts, decided=decided)[0]


def as_plain(advised: Advised, told: Told, recipe: str | None, wrote: Path | None) -> dict[str, Any]:
    """The same as one JSON object."""
    found = advised.fits.get(advised.method or "")
    steps = [
        {
            "stage": step.stage.name,
            "rule": step.rule.id,
            "matched": step.matched,
            "because": step.because,
            "reason": step.rule.reason,
            "source": step.rule.source,
        }
        for step in advised.decision.steps
    ]
    return {
        "ok": True,
        **advised.decision.answers,
        "facts": {name: sorted(v) if isinstance(v, frozenset) else v for name, v in advised.facts.items()},
        "device": advised.device.name,
        "measure": [_as_command(rule, _typed(rule, advised, told)) for rule in _to_measure(advised)],
        "path": steps,
        "settings": [{"key": one.key, "line": one.text, "reason": one.reason} for one in advised.lines],
        "peak_bytes": found.estimate.peak_bytes if found else None,
        "recipe": recipe,
        "wrote": wrote if recipe is not None else None,
    }


def _as_command(rule: AdviceRule, typed: str) -> dict[str, Any]:
    return {"command": typed, "reason": rule.reason, "fill_in": _to_fill(typed)}


def _to_measure(advised: Advised) -> list[AdviceRule]:
    """The rules that matched and have a command that would settle something, each command once."""
    later = {rule.id for rule in advised.decision.matched("later")}
    rules = [s.rule for s in advised.decision.steps if s.matched and s.rule.measure and s.rule.id not in later]
    return list({rule.measure: rule for rule in reversed(rules)}.values())[::-1]


def _typed(rule: AdviceRule, advised: Advised, told: Told) -> str:
    """The command of a rule with what was given in its place, as a shell takes it."""
    device = {"device": told.device, "budget": told.budget}
    one_by_one = ("prompted", "rows", "quality", "changes", "serve", "model", "data")
    given = {"task": ",".join(sorted(told.task)), **{name: getattr(told, name) for name in one_by_one}}
    places = {
        "model": shlex.quote(_model(advised, told)) if told.model else "MODEL",
        "data": shlex.quote(told.data) if told.data else "FILE",
        "device": _flags(device),
        "flags": _flags({**given, **({} if told.device == "auto" else device)}),
    }
    return (rule.measure or "").format(**places)


def _flags(given: dict[str, Any]) -> str:
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value not in (None, ""))


def _to_fill(typed: str) -> list[str]:
    """The words of a command that stand for what was not told."""
    return [word for word in ("MODEL", "FILE") if word in typed.split()]


def _model(advised: Advised, told: Told) -> str:
    """The model as other verbs take it: a known name means its repository."""
    named = told.model or ""
    return named if advised.architecture is None or Path(named).expanduser().exists() else advised.architecture.name
