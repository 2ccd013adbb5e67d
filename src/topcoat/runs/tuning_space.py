"""What a search may change: the table SPACE of settings with their usual ranges, and ranges of one's own.

    learning_rate                the table's range
    learning_rate=1e-5..1e-3     another one; on a logarithmic scale where the table's is
    r=8/16/32                    these values and no others

Every value is tried on the recipe before anything is loaded, so a range that leaves what a setting takes is refused
with the setting's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from topcoat.errors import Problem, TopcoatError
from topcoat.planning.model_files import find_architecture
from topcoat.planning.possible import require_possible
from topcoat.recipe.fields import closest
from topcoat.recipe.load import dump_recipe, recipe_from_dict
from topcoat.recipe.schema import Recipe
from topcoat.recipe.synonyms import SYNONYMS
from topcoat.recipe.yaml_text import parse_yaml

Value = str | int | float | bool


class Trial(Protocol):
    """What a range asks of an optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> Value:
        """A value for one trial."""
        if self.whole:
            return trial.suggest_int(name, round(self.low), round(self.high), log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}")

    def values(self) -> list[Value]:
        """Its ends."""
        return [round(self.low), round(self.high)] if self.whole else [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """A few values; a list of names is written with + between them."""

    among: tuple[Value, ...]

    def suggest(self, trial: Trial, name: str) -> Value:
        """A value for one trial."""
        chosen: Value = trial.suggest_categorical(name, self.among)
        return chosen

    def values(self) -> list[Value]:
        """All of them."""
        return list(self.among)

    def __str__(self) -> str:
        return "/".join(_show(value) for value in self.among)


def _show(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


Span = Range | Choices
_TARGETS = ("all-linear", "q_proj+v_proj", "q_proj+k_proj+v_proj+o_proj", "gate_proj+up_proj+down_proj")
SPACE: dict[str, tuple[str, Span]] = {
    "learning_rate": ("train", Range(1e-5, 1e-2, log=True)),
    "r": ("adapter", Choices((4, 8, 16, 32, 64))),
    "lora_alpha": ("adapter", Choices((8.0, 16.0, 32.0, 64.0, 128.0))),
    "lora_dropout": ("adapter", Choices((0.0, 0.05, 0.1))),
    "use_rslora": ("adapter", Choices((False, True))),
    "loraplus_lr_ratio": ("adapter", Choices((1.0, 4.0, 16.0))),
    "target_modules": ("adapter", Choices(_TARGETS)),
    "batch_size": ("train", Choices((4, 8, 16, 32))),
    "warmup_ratio": ("train", Range(0.0, 0.2)),
    "epochs": ("train", Choices((1.0, 2.0, 3.0))),
    "weight_decay": ("train", Choices((0.0, 0.01, 0.1))),
    "lr_scheduler_type": ("train", Choices(("cosine", "linear", "constant"))),
    "max_grad_norm": ("train", Choices((0.3, 1.0))),
    "adam_beta2": ("train", Choices((0.95, 0.99, 0.999))),
    "label_smoothing": ("train", Range(0.0, 0.1)),
}
"""Setting -> its section and its usual range."""
SHORT = {"lr": "learning_rate", "warmup": "warmup_ratio", "alpha": "lora_alpha", "rank": "r", "dropout": "lora_dropout"}
_TENFOLD = ("vera", "ia3", "prompt_tuning", "p_tuning", "p_tuning_v2", "prefix_tuning")
RATES = {"full": 0.1} | dict.fromkeys(_TENFOLD, 10.0)
"""Method -> what LoRA's range of rates is multiplied with."""
LARGEST_RATE = 0.5
EDGE = 0.1
"""Share of a range that is its edge."""

Space = dict[str, Span]


def parse_space(over: str, recipe: Recipe) -> Space:
    """ "learning_rate,r=8/16" -> what is searched. Raises TopcoatError with everything that is wrong with it."""
    space: Space = {}
    problems: list[Problem] = []
    for part in filter(None, (part.strip() for part in over.split(","))):
        key, _, text = part.partition("=")
        try:
            name = _name(key.strip(), recipe)
            if name in space:
                raise TopcoatError(f"{name} is named twice", "--over", "name it once")
            space[name] = _span(name, text.strip(), recipe)
        except TopcoatError as error:
            problems += error.problems
    if not space and not problems:
        problems = [Problem("nothing to search over", "--over", f"name some of {', '.join(SPACE)}")]
    for name, span in space.items():
        problems += _wrong_values(name, span, recipe)
    if problems:
        raise TopcoatError.gather(problems)
    return space


def _name(key: str, recipe: Recipe) -> str:
    plain = key.rpartition(".")[2]
    name = SHORT.get(plain, plain)
    if name not in SPACE and plain in SYNONYMS:
        name = SYNONYMS[plain].target.rpartition(".")[2]
    if name not in SPACE or (key != plain and key != f"{SPACE[name][0]}.{name}"):
        near = closest(plain, [*SPACE, *SHORT])
        fix = f"did you mean {' or '.join(near)}? " if near else ""
        if _number(key) is not None:
            fix = "values of one setting are written with /, such as r=8/16. "
        raise TopcoatError(f"{key!r} is nothing to search over", "--over", f"{fix}Known are {', '.join(SPACE)}")
    section = SPACE[name][0]
    if section == "adapter" and name not in type(recipe.adapter).model_fields:
        keys = [other for other, (home, _) in SPACE.items() if home == "train"]
        what = f"{name} is no setting of method {recipe.adapter.method}"
        raise TopcoatError(what, "--over", f"search over {', '.join(keys)}, or another method's recipe")
    return name


def _span(name: str, text: str, recipe: Recipe) -> Span:
    """The usual range, or the one that is written."""
    usual = SPACE[name][1]
    if not text:
        if name == "learning_rate" and isinstance(usual, Range):
            factor = RATES.get(recipe.adapter.method, 1.0)
            low, high = (float(f"{end * factor:.3g}") for end in (usual.low, usual.high))
            return replace(usual, low=low, high=min(LARGEST_RATE, high))
        return usual
    if ".." not in text:
        return Choices(tuple(dict.fromkeys(_value(part.strip(), usual) for part in text.replace("|", "/").split("/"))))
    ends = [_number(part) for part in text.split("..")]
    example = f"{name}={usual}" if isinstance(usual, Range) else f"{name}={usual.among[0]}..{usual.among[-1]}"
    if len(ends) != 2 or None in ends or isinstance(usual.values()[0], str | bool):
        raise TopcoatError(f"{name}={text} is no range", "--over", f"write {name}={usual}, or such as {example}")
    low, high = (end for end in ends if end is not None)
    if low >= high:
        raise TopcoatError(f"{name}={text} begins at or above its end", "--over", f"write {name}={high:g}..{low:g}")
    whole = isinstance(usual.values()[0], int) and not isinstance(usual.values()[0], bool)
    log = low > 0 and (usual.log if isinstance(usual, Range) else name in ("r", "lora_alpha", "batch_size"))
    return Range(low, high, log, whole)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _value(text: str, usual: Span) -> Value:
    """A value as its setting has it: a switch, a number, or a word."""
    first = usual.values()[0]
    if isinstance(first, bool):
        return text.lower() == "true" if text.lower() in ("true", "false") else text
    number = _number(text)
    if number is None or isinstance(first, str):
        return text
    return int(number) if isinstance(first, int) and number.is_integer() else number


def _wrong_values(name: str, span: Span, recipe: Recipe) -> list[Problem]:
    """What the recipe says to each value that stands in `span`."""
    problems: list[Problem] = []
    for value in span.values():
        try:
            with_values(recipe, {name: value})
        except TopcoatError as error:
            problems += [Problem(said.what, f"--over {name}={span}", said.fix) for said in error.problems]
    return problems[:1]


def with_values(recipe: Recipe, values: Mapping[str, Value], **train: Any) -> Recipe:
    """`recipe` with other values, checked as a file would be. Raises TopcoatError for what it does not take."""
    tree = parse_yaml(dump_recipe(recipe), "the recipe").values
    for name, value in values.items():
        listed = name == "target_modules" and value != "all-linear"
        tree[SPACE[name][0]][name] = str(value).split("+") if listed else value
    tree["train"] |= train
    return recipe_from_dict(tree, "topcoat tune", check_files=False)


def fitting(space: Space, recipe: Recipe, say: Callable[[str], None]) -> Space:
    """`space` without ranks that no matrix of the model can have. Raises TopcoatError where nothing is left."""
    found: Space = {}
    for name, span in space.items():
        refused = {}
        for value in span.values() if name == "r" else []:
            tried = with_values(recipe, {name: value})
            try:
                require_possible(find_architecture(recipe.model.path), tried.adapter, tried.model.quantization)
            except TopcoatError as error:
                refused[value] = error
        kept = tuple(value for value in span.values() if value not in refused)
        if refused and (isinstance(span, Range) or not kept):
            raise next(iter(refused.values()))
        if refused:
            say(f"left out of {name}: {', '.join(map(str, refused))}, above what a matrix of this model can have")
        found[name] = Choices(kept) if refused else span
    return found


def at_edge(space: Space, values: Mapping[str, Value]) -> list[str]:
    """The settings whose value lies within a tenth of the end of its range, on the range's own scale."""
    names = []
    for name, span in space.items():
        value = values.get(name)
        if not isinstance(span, Range) or not isinstance(value, int | float):
            continue
        low, high, at = (math.log(x) if span.log else x for x in (span.low, span.high, value))
        if not EDGE <= (at - low) / (high - low) <= 1 - EDGE:
            names.append(name)
    return names


def suggest(space: Space, trial: Trial) -> dict[str, Value]:
    """The values of one trial."""
    return {name: span.suggest(trial, name) for name, span in space.items()}


def own_values(space: Space, recipe: Recipe, rate: float) -> dict[str, Value]:
    """The recipe's own values where they lie in `space`: the first trial, so that what wins is no worse than these."""
    values: dict[str, Value] = {}
    for name, span in space.items():
        found: Any = getattr(getattr(recipe, SPACE[name][0]), name)
        value = rate if name == "learning_rate" and found == "auto" else found
        value = "+".join(value) if isinstance(value, list) else value
        inside = value in span.among if isinstance(span, Choices) else _inside(value, span)
        if inside:
            values[name] = value
    return values


def _inside(value: Any, span: Range) -> bool:
    return isinstance(value, int | float) and span.low <= value <= span.high


def show_values(values: Mapping[str, Value]) -> str:
    """ "learning_rate 0.0004, r 16"."""
    return ", ".join(f"{name} {_show(value)}" for name, value in values.items())


def winner_text(recipe: Recipe, values: Mapping[str, Value], said: str) -> str:
    """The recipe that won as YAML, complete, with a line on where its values are from."""
    return f"# {said}\n{dump_recipe(with_values(recipe, values))}"
