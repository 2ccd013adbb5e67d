"""What a recipe writes, as leaves: one for each value, under our name for it, remembering how and where it was written.

Sections, shorthands (`model: ./path`), other tools' spellings and dotted overrides all become the same leaves here.
What they were read as is said in notes; what cannot be read is a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from topcoat.errors import Problem
from topcoat.recipe.fields import Path, closest, dotted, is_mapping, leaves, sections
from topcoat.recipe.synonyms import ACCUMULATION, NO_MEANING, PER_DEVICE, SECTION_NAMES, SHORTHANDS, SYNONYMS, VALUES

PARTS = (tuple(PER_DEVICE.split(".")), tuple(ACCUMULATION.split(".")))  # their product is train.batch_size
BATCH = ("train", "batch_size")
EXCLUSIVE = (  # two ways to say one thing: only one of them may be written
    (BATCH, ("train", "batch_tokens"), "the size of a batch is counted in examples or in tokens"),
    (("train", "warmup_ratio"), ("train", "warmup_steps"), "warm-up is a share of the steps or a number of them"),
)


@dataclass(frozen=True)
class Leaf:
    """One value: its path in the recipe, and the key and place as the user wrote them."""

    path: Path
    value: Any
    key: str
    where: str


@dataclass
class Written:
    """Everything a source writes: leaves by path, where its sections stand (and which are no
    sections), and what reading it brought up."""

    leaves: dict[Path, Leaf] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, leaf: Leaf) -> None:
        """Add a leaf; a second one for the same setting is a problem that names both."""
        for path, other in self.leaves.items():
            if _overlap(path, leaf.path):
                what = f"{leaf.key} and {other.key} ({other.where}) both set {dotted(min(path, leaf.path, key=len))}"
                self.problems.append(Problem(what, leaf.where, "keep one of the two"))
                return
        self.leaves[leaf.path] = leaf

    def override(self, newer: Written) -> None:
        """Let the leaves of `newer` replace those that say the same thing, or that they rule out."""
        for path, leaf in newer.leaves.items():
            self.leaves.pop(path, None)
            self._drop([old for old in self.leaves if _overlap(old, path)], leaf)
            for first, second, _ in EXCLUSIVE:
                for mine, its in ((first, second), (second, first)):
                    if _overlap(mine, path) and leaf.value is not None:
                        self._drop([old for old in self.leaves if _overlap(old, its)], leaf)
            section = sections().get(path[:-1])
            if section and section.tag == path[-1]:
                variant = section.variant(leaf.value)
                keys = variant.model_fields if variant else section.keys
                beside = [old for old in self.leaves if old[:-1] == path[:-1] and old[-1] not in keys]
                self._drop(beside, leaf)
            self.leaves[path] = leaf
        self.places = {**newer.places, **self.places}
        self.broken |= newer.broken
        self.problems += newer.problems
        self.notes += newer.notes

    def _drop(self, paths: list[Path], because: Leaf) -> None:
        for path in paths:
            old = self.leaves.pop(path)
            self.notes.append(f"{because.where} replaces {old.key} ({old.where})")


def _overlap(a: Path, b: Path) -> bool:
    """Whether one path is the other, or lies inside it."""
    short = min(len(a), len(b))
    return a[:short] == b[:short]


def read_tree(values: Mapping[str, Any], where: Callable[[Path], str]) -> Written:
    """The leaves of a recipe written as nested mappings; `where(path as written)` names the place of a key."""
    written = Written()
    _read_section(values, (), written, where)
    return written


def _read_section(values: Mapping[str, Any], section: Path, written: Written, where: Callable[[Path], str]) -> None:
    written.places.setdefault(section, where(section))
    for raw, value in values.items():
        name = str(raw)
        path = (*section, name)
        place = where(path)
        if path in sections():
            _read_child(path, value, written, where)
        elif is_mapping(path) and isinstance(value, Mapping):
            for inner, item in value.items():
                written.put(Leaf((*path, str(inner)), item, dotted((*path, str(inner))), where((*path, str(inner)))))
        elif path in leaves():
            _put(Leaf(path, value, dotted(path), place), written)
        elif name in SYNONYMS and dotted(section) in SYNONYMS[name].places():
            _read_synonym(Leaf(path, value, dotted(path), place), written)
        else:
            written.problems.append(unknown_key(section, name, place))


def _read_child(path: Path, value: Any, written: Written, where: Callable[[Path], str]) -> None:
    section = sections()[path]
    if isinstance(value, Mapping):
        _read_section(value, path, written, where)
    elif value is None:
        written.places.setdefault(path, where(path))
        if section.nullable:
            written.put(Leaf(path, None, dotted(path), where(path)))
    elif isinstance(value, str) and dotted(path) in SHORTHANDS:
        written.places.setdefault(path, where(path))
        target = tuple(SHORTHANDS[dotted(path)].split("."))
        _put(Leaf(target, value, dotted(path), where(path)), written)
    else:
        example = section.keys[0]
        what = f"{dotted(path)} is {show(value)}; expected a section of settings: {', '.join(section.keys)}"
        fix = f"write them below it, indented:\n           {path[-1]}:\n             {example}: …"
        written.problems.append(Problem(what, where(path), fix))
        written.broken.add(path)


def _put(leaf: Leaf, written: Written) -> None:
    """Add a leaf, after other spellings of its value."""
    known = VALUES.get((dotted(leaf.path), leaf.value)) if isinstance(leaf.value, str) else None
    if known is None:
        written.put(leaf)
        return
    written.notes.append(f"{leaf.key}: {leaf.value} ({leaf.where}) is read as {_say(known)}")
    for target, value in known.items():
        written.put(Leaf(tuple(target.split(".")), value, leaf.key, leaf.where))


def _read_synonym(leaf: Leaf, written: Written) -> None:
    synonym = SYNONYMS[leaf.path[-1]]
    try:
        meaning = synonym.values(leaf.value)
    except ValueError as error:
        what = f"{leaf.key} is {show(leaf.value)}; expected {error}"
        written.problems.append(Problem(what, leaf.where, f"the setting here is {synonym.target}"))
        return
    if synonym.target not in (PER_DEVICE, ACCUMULATION):
        said = _say(meaning) if synonym.read else synonym.target
        written.notes.append(f"{leaf.key} ({leaf.where}) is read as {said or 'the default, nothing to set'}")
    for target, value in meaning.items():
        _put(Leaf(tuple(target.split(".")), value, leaf.key, leaf.where), written)


def _say(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{target}: {show(value, quote=False)}" for target, value in values.items())


def unknown_key(section: Path, name: str, where: str) -> Problem:
    """The problem of a key that no setting has: says what it may have meant, here or in another section."""
    label = dotted((*section, name))
    if name in NO_MEANING:
        return Problem(f"{label} has no meaning here: {NO_MEANING[name]}", where, "take the line out")
    what = f"unknown setting {label}"
    if name in SYNONYMS:
        return Problem(what, where, f"{name} belongs in {_home(SYNONYMS[name].target)}")
    if name in SECTION_NAMES and not section:
        return Problem(what, where, f"the section is called {SECTION_NAMES[name]}")
    here = sections()[section].keys
    near = closest(name, here)
    elsewhere = {path[-1]: path for path in leaves() if path[:-1] != section}
    if not near and name in elsewhere:
        return Problem(what, where, f"{name} belongs in {_home(dotted(elsewhere[name]))}")
    if near:
        return Problem(what, where, f"did you mean {' or '.join(near)}?")
    far = closest(name, [*elsewhere, *SYNONYMS], cutoff=0.75)
    if far:
        target = dotted(elsewhere[far[0]]) if far[0] in elsewhere else SYNONYMS[far[0]].target
        return Problem(what, where, f"did you mean {far[0]}? It belongs in {_home(target)}")
    return Problem(what, where, f"{dotted(section) or 'a recipe'} has {', '.join(here)}")


def _home(target: str) -> str:
    """ "adapter.r" -> "adapter, as r"."""
    path = tuple((".".join(BATCH) if target in (PER_DEVICE, ACCUMULATION) else target).split("."))
    section = dotted(path[:-1])
    return f"{section}, as {path[-1]}" if section else f"the top level, as {path[-1]}"


def show(value: Any, quote: bool = True) -> str:
    """A value as YAML would write it, text in quotes: 'fast', 3, true, null, [a, b]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "…"
        return repr(short) if quote else short
    if isinstance(value, list):
        return f"[{', '.join(show(item, quote=False) for item in value[:6])}{', …' if len(value) > 6 else ''}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {show(item, quote=False)}' for key, item in list(value.items())[:4])}}}"
    return str(value)[:60]
