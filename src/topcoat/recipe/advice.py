"""Prompt, retrieval or tuning, and which kind of tuning: the rules of `advice.yaml`, read, checked and followed.

The file is all that decides. This one says what a rule may look like, which rule matches facts, and keeps the path that
was taken: every rule that was asked, and the fact that let it match or not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from topcoat.config import Config
from topcoat.errors import Problem, TopcoatError
from topcoat.recipe.yaml_text import parse_yaml

FILE = Path(__file__).with_name("advice.yaml")
DERIVED: dict[str, tuple[str, ...] | None] = {
    "recipe": ("yes",),
    "parameters": None,
    "tokens": None,
    "text": ("yes", "no"),
    "full_fits": ("yes", "no"),
    "lora_fits": ("yes", "no"),
    "qlora_fits": ("yes", "no"),
    "capacity": ("within", "above"),
    "method": ("lora", "qlora", "full", "smaller-model", "measure"),
}
"""Facts that nobody is asked for, with their words; None for a number. They follow from the model, the data and the
device, and `method` from the stage of that name."""
UNKNOWN = "unknown"
ANSWERS = ("prompt", "rag", "tune", "rag+tune", "measure", "lora", "qlora", "full", "smaller-model")

Fact = str | float | frozenset[str] | None
Facts = Mapping[str, Fact]


class Question(Config):
    """Something a person knows."""

    ask: str
    """The question."""
    choices: dict[str, str] = Field(default_factory=dict)
    """Word -> what it means."""
    many: bool = False
    """Several words may hold at once."""
    number: bool = False
    """The answer is a number."""

    def require(self, word: object, where: str) -> None:
        """Raises TopcoatError, with the nearest ones, for a word that is no answer."""
        if word not in self.choices:
            near = difflib.get_close_matches(str(word), self.choices, n=2)
            fix = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(self.choices)}"
            raise TopcoatError(f"{word!r} is no answer here", where, fix)


class Bound(Config):
    """A number's range."""

    below: float | None = None
    """Smaller than this."""
    at_least: float | None = Field(None, alias="from")
    """This or more."""


Condition = str | list[str] | Bound


class AdviceRule(Config):
    """One rule: when it holds, what it answers and why."""

    id: str
    """Its name in the path."""
    when: dict[str, Condition] = Field(default_factory=dict)
    """Fact -> what it must be; all of them."""
    also: dict[str, Condition] = Field(default_factory=dict, alias="and")
    """More of the same, for a second line about one fact."""
    unless: dict[str, Condition] = Field(default_factory=dict)
    """Fact -> what it must not be; none of them."""
    answer: str | None = None
    """What the stage answers."""
    reason: str
    """Why, in one sentence."""
    source: str
    """Where that is from."""
    measure: str | None = None
    """A command that would settle it."""
    set: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Lines of the recipe."""


class Stage(Config):
    """Rules that are asked together."""

    name: str
    """Its name."""
    title: str
    """For people."""
    first: bool = False
    """The first rule that matches gives the answer; otherwise every one that matches is said."""
    rules: list[AdviceRule]
    """In the order in which they are asked."""


class Advice(Config):
    """The whole file."""

    questions: dict[str, Question]
    """Fact -> how it is asked."""
    stages: list[Stage]
    """In order."""

    @model_validator(mode="after")
    def _speaks_of_facts_that_exist(self) -> Advice:
        words: dict[str, tuple[str, ...] | None] = dict(DERIVED)
        words |= {name: None if asked.number else tuple(asked.choices) for name, asked in self.questions.items()}
        for stage in self.stages:
            for rule in stage.rules:
                if stage.first != (rule.answer is not None) or rule.answer not in (None, *ANSWERS):
                    raise ValueError(f"rule {rule.id} answers {rule.answer}; stage {stage.name} needs one of its own")
                for part in (rule.when, rule.also, rule.unless):
                    for fact, condition in part.items():
                        _check_condition(rule.id, fact, condition, words)
        ids = [rule.id for stage in self.stages for rule in stage.rules]
        if len(set(ids)) < len(ids):
            raise ValueError("two rules have one id")
        return self


def _check_condition(rule: str, fact: str, condition: Condition, words: Mapping[str, tuple[str, ...] | None]) -> None:
    if fact not in words:
        raise ValueError(f"rule {rule} asks for {fact}, which is no fact")
    known = words[fact]
    asked = [] if isinstance(condition, Bound) else [condition] if isinstance(condition, str) else condition
    wrong = [word for word in asked if word != UNKNOWN and word not in (known or ())]
    if wrong or (isinstance(condition, Bound) and known is not None):
        raise ValueError(f"rule {rule} asks whether {fact} is {condition}, which it never is")


@dataclass(frozen=True)
class Step:
    """One rule that was asked."""

    stage: Stage
    rule: AdviceRule
    matched: bool
    because: str
    """The facts that let it match, or the one that did not."""


@dataclass(frozen=True)
class Decision:
    """What came out of the stages that were followed, with the path."""

    answers: Mapping[str, str]
    """Stage -> its answer; "measure" where the facts do not decide."""
    steps: tuple[Step, ...]

    def matched(self, stage: str) -> list[AdviceRule]:
        """The rules of a stage that matched."""
        return [step.rule for step in self.steps if step.matched and step.stage.name == stage]


@cache
def load_advice(file: Path = FILE) -> Advice:
    """The rules. Raises TopcoatError for a file that is not what it should be."""
    try:
        parsed = parse_yaml(file.read_text(encoding="utf-8"), str(file))
        if parsed.twice:
            raise TopcoatError.gather(parsed.twice)
        return Advice.model_validate(parsed.values)
    except ValidationError as error:
        problems = [
            Problem(f"{'.'.join(map(str, item['loc'])) or 'advice'}: {item['msg']}", str(file), "restore the file")
            for item in error.errors(include_url=False)
        ]
        raise TopcoatError.gather(problems) from error


def decide(advice: Advice, facts: Facts, stages: tuple[str, ...]) -> Decision:
    """Follow the stages of these names. A stage that is to answer and has no rule that matches answers "measure"."""
    answers: dict[str, str] = {}
    steps: list[Step] = []
    for stage in advice.stages:
        if stage.name not in stages:
            continue
        if stage.first:
            answers[stage.name] = "measure"
        for rule in stage.rules:
            matched, because = _match(rule, facts)
            steps.append(Step(stage, rule, matched, because))
            if matched and rule.answer is not None:
                answers[stage.name] = rule.answer
                break
    return Decision(answers, tuple(steps))


def _match(rule: AdviceRule, facts: Facts) -> tuple[bool, str]:
    """Whether the rule holds, and the facts that say so: all of them, or the first that does not."""
    wanted = [(fact, condition, True) for part in (rule.when, rule.also) for fact, condition in part.items()]
    wanted += [(fact, condition, False) for fact, condition in rule.unless.items()]
    said = []
    for fact, condition, should in wanted:
        value = facts.get(fact)
        text = f"{fact} {show_fact(value)}"
        if _holds(condition, value) != should:
            return False, f"{text}, {'not ' if should else ''}{_show_condition(condition)}"
        if should:
            said.append(text)
    return True, "; ".join(dict.fromkeys(said))


def _holds(condition: Condition, value: Fact) -> bool:
    if isinstance(condition, Bound):
        if not isinstance(value, int | float):
            return False
        low, high = condition.at_least, condition.below
        return (low is None or value >= low) and (high is None or value < high)
    words = {condition} if isinstance(condition, str) else set(condition)
    if value is None or value == frozenset():
        return UNKNOWN in words
    return bool(words & value) if isinstance(value, frozenset) else value in words


def _show_condition(condition: Condition) -> str:
    if isinstance(condition, str):
        return condition
    if isinstance(condition, Bound):
        return " and ".join(_bounds(condition))
    return " or ".join(condition)


def _bounds(bound: Bound) -> Iterator[str]:
    if bound.at_least is not None:
        yield f"{bound.at_least:,.0f} or more"
    if bound.below is not None:
        yield f"below {bound.below:,.0f}"


def show_fact(value: Fact) -> str:
    """A fact for people: "400", "style, task", "unknown"."""
    if value is None or value == frozenset():
        return UNKNOWN
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    return value if isinstance(value, str) else f"{value:,.0f}"
