"""Settings that cannot both be meant. Each rule looks at what was written (not at defaults); none stops the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from topcoat.adapters.limits import carry_problem
from topcoat.errors import Problem
from topcoat.recipe.named_files import looks_local
from topcoat.recipe.uncaptured import LABELLED, find_uncaptured
from topcoat.recipe.written import EXCLUSIVE, Written, show


def _first_file(parts: list[Any]) -> object:
    """The file of the first part of a mixture, which data.train is in the recipe that is saved."""
    return parts[0].get("train_file") if parts and isinstance(parts[0], dict) else None


SETTINGS_OF: dict[str, tuple[object, tuple[str, ...]]] = {
    "data.loss_on": ("assistant", ("sft",)),
    "evaluate.metrics": (["perplexity", "exact_match"], ("sft", "completion")),
    "data.labels": (None, ("classification",)),
    "data.label_columns": (["label"], LABELLED),
    "train.class_weights": (None, ("classification",)),
    "train.label_smoothing": (0, ("sft", "completion", "classification")),
}
"""Settings that mean something for some objectives only: their defaults, and which."""


def of_another_objective(objective: str) -> list[tuple[str, object, str, str]]:
    """(setting, default, what is wrong with it, fix) of the settings that have no meaning for `objective`."""
    return [
        (
            dots,
            usual,
            f"has no meaning with train.objective: {objective}",
            f"take it out: it is for {' and '.join(meant)}",
        )
        for dots, (usual, meant) in SETTINGS_OF.items()
        if objective not in meant
    ]


def _starts_and_formats(value: Callable[[str], object]) -> list[tuple[str, str, str]]:
    """(setting, what is wrong with it, fix) of methods and starts that no linear of the frozen weights can carry.

    Overrides may make an exception of some linears, and then the weights decide when they are there.
    """
    if value("model.quantization.overrides"):
        return []
    format, start = value("model.quantization.format"), value("adapter.init_lora_weights")
    named = f"model.quantization.format is {format}" if format else "model.quantization is not written"
    found = carry_problem(str(value("adapter.method")), start, format, named)
    return [] if found is None else [found]


def find_contradictions(written: Written) -> None:
    """Add a problem for every pair of settings that cannot both hold."""

    def value(dots: str) -> object:
        leaf = written.leaves.get(tuple(dots.split(".")))
        return leaf.value if leaf else None

    def object_to(dots: str, what: str, fix: str) -> None:
        leaf = written.leaves[tuple(dots.split("."))]
        written.problems.append(Problem(f"{leaf.key} {what}", leaf.where, fix))

    for first, second, reason in EXCLUSIVE:
        both = [written.leaves[path] for path in (first, second) if path in written.leaves]
        if len(both) == 2 and all(leaf.value is not None for leaf in both):
            a, b = both
            what = f"{a.key} ({a.where}) and {b.key} are both written: {reason}"
            written.problems.append(Problem(what, b.where, "keep one of the two"))
    if value("adapter.method") == "full" and value("model.quantization.format"):
        what = f"is {value('model.quantization.format')} with adapter.method full: rounded weights cannot be trained"
        object_to("model.quantization.format", what, "take the quantization out, or train an adapter: method: lora")
    for dots, what, fix in (*_starts_and_formats(value), *find_uncaptured(value)):
        object_to(dots, what, fix)
    if value("train.optimizer_folder") is not None and value("train.optimizer") != "paged_adamw":
        fix = "write optimizer: paged_adamw, or take this out"
        object_to("train.optimizer_folder", "is written, but only paged_adamw keeps a file", fix)
    if ("data", "validation") in written.leaves and value("data.validation") is None:
        fix = "name a file or a share in data.validation, or take this out"
        for dots in ("evaluate.every", "train.early_stopping_patience"):
            if value(dots) is not None:
                object_to(dots, f"is {value(dots)}, but data.validation is null: there is nothing to evaluate", fix)
        metrics = value("evaluate.metrics")
        if metrics == ["exact_match"]:  # both together are the default, which asks for nothing
            object_to("evaluate.metrics", f"is {show(metrics)}, but data.validation is null: nothing to measure", fix)
    parts = value("data.mixture")
    if isinstance(parts, list):
        if value("data.train") not in (None, _first_file(parts)):
            object_to("data.train", "and data.mixture are both written", "write all files into data.mixture")
        weighted = {part.get("weight") is not None for part in parts if isinstance(part, dict)}
        if len(weighted) == 2:
            object_to("data.mixture", "has a weight in some parts and none in others", "write it in each, or in none")
    spans = {dots: n for dots in ("adapter.tinit", "adapter.tfinal") if isinstance(n := value(dots), int)}
    steps = value("train.max_steps")
    if spans and isinstance(steps, int) and sum(spans.values()) >= steps:
        what = f"leaves AdaLoRA no step to take ranks away: adapter.tinit and adapter.tfinal have {sum(spans.values())}"
        object_to("train.max_steps", f"is {steps}, which {what}", "lower those two, or leave them out")
    for dots, usual, what, fix in of_another_objective(str(value("train.objective") or "sft")):
        if value(dots) not in (None, usual):  # a saved recipe has every setting, most at their defaults
            object_to(dots, what, fix)
    path = value("model.path")
    if value("model.revision") is not None and isinstance(path, str) and looks_local(path):
        object_to("model.revision", f"is {show(value('model.revision'))}, but {path} is a local path", "take it out")
