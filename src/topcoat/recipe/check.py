"""Leaves -> Recipe: numbers in quotes read, types and ranges checked by the settings types, errors in plain words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from topcoat.errors import Problem
from topcoat.quant.settings import NoFormat, read_config
from topcoat.recipe.fields import (
    Path,
    accepts,
    choices,
    closest,
    dotted,
    expected,
    leaves,
    required,
    schema_of,
    sections,
)
from topcoat.recipe.schema import Recipe
from topcoat.recipe.written import BATCH, PARTS, Leaf, Written, show

YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
TRUE_FALSE = {"true": True, "false": False}
FORMAT: Path = ("model", "quantization", "format")
OVERRIDES: Path = ("model", "quantization", "overrides")


def check(written: Written) -> Recipe | None:
    """The recipe that `written` spells. What is wrong goes into `written.problems`, and then None comes back."""
    multiply_batch(written)
    for path, leaf in list(written.leaves.items()):
        written.leaves[path] = read_number(leaf, written.notes)
    bad = _wrong_variants(written) | written.broken
    for path, leaf in written.leaves.items():
        if path not in bad and isinstance(leaf.value, float) and not math.isfinite(leaf.value):
            bad.add(path)
            written.problems.append(wrong_value(leaf))
    try:
        recipe = Recipe.model_validate(_nest(written, bad), strict=True)
    except ValidationError as error:
        _explain(error, written, bad)
        return None
    return None if written.problems else recipe


def multiply_batch(written: Written) -> None:
    """per-device batch x accumulation -> train.batch_size, in place of the two, with a note."""
    parts = [written.leaves.pop(path) for path in PARTS if path in written.leaves]
    if not parts:
        return
    if parts[0].path != PARTS[0]:
        what = f"{parts[0].key} multiplies a batch size that is not written"
        fix = "write train.batch_size, the examples of one optimizer step, instead"
        written.problems.append(Problem(what, parts[0].where, fix))
        return
    product = 1
    for part in parts:
        number = read_number(replace(part, path=BATCH), written.notes).value
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            what = f"{part.key} is {show(part.value)}; expected a whole number of at least 1"
            written.problems.append(Problem(what, part.where, "topcoat's own setting is train.batch_size, the product"))
            return
        product *= number
    first, said = parts[0], " x ".join(f"{part.key} {part.value}" for part in parts)
    written.leaves[BATCH] = Leaf(BATCH, product, first.key, first.where)
    written.notes.append(
        f"{said} ({first.where}) is read as train.batch_size {product}, the examples of one optimizer step; how they "
        "are split is decided by train.micro_batch_tokens and does not change the result"
    )


def read_number(leaf: Leaf, notes: list[str]) -> Leaf:
    """The leaf with a number where a number was written in quotes, and a whole float as an integer where one is due.

    A single word for a list of words, and true or false in quotes, are read too; each reading is noted.
    """
    if leaf.path not in leaves():
        return leaf
    value, note = leaf.value, ""
    if isinstance(value, str) and accepts(leaf.path, "number"):
        try:
            value = float(value)
        except ValueError:
            return leaf
        if not accepts(leaf.path, "string") or math.isfinite(value):
            note = "the number"
    elif isinstance(value, str) and value in choices(leaf.path) and accepts(leaf.path, "array"):
        if not accepts(leaf.path, "string"):  # all-linear is a word of its own
            value, note = [value], "the list"
    elif isinstance(value, str) and accepts(leaf.path, "boolean") and value.lower() in TRUE_FALSE:
        value, note = TRUE_FALSE[value.lower()], "the switch"
    if isinstance(value, float) and value.is_integer() and _only_whole(leaf.path):
        value = int(value)
    if note:
        notes.append(f"{leaf.key}: {show(leaf.value)} ({leaf.where}) is text; read as {note} {show(value)}")
    return replace(leaf, value=value)


def _only_whole(path: Path) -> bool:
    return accepts(path, "integer")


def _wrong_variants(written: Written) -> set[Path]:
    """Report keys that belong to another method or format than the one picked; the paths not to look at again."""
    bad: set[Path] = set()
    for path, section in sections().items():
        inside = [leaf for leaf in written.leaves.values() if leaf.path[:-1] == path]
        if section.tag is None or not inside:
            continue
        tag = written.leaves.get((*path, section.tag))
        variant = section.variant(tag.value if tag else section.default_tag)
        if variant is None:
            bad |= {leaf.path for leaf in inside}
            if tag is None:
                what = f"{dotted(path)}.{section.tag} is missing; expected {expected((*path, section.tag))}"
                fix = f"{inside[0].key} needs it: write {section.tag}: {_natural(path, inside)}"
                written.problems.append(Problem(what, inside[0].where, fix))
            else:
                written.problems.append(wrong_value(tag))
            continue
        for leaf in inside:
            if leaf.path[-1] not in variant.model_fields:
                bad.add(leaf.path)
                owners = [kind for kind in section.variants if leaf.path[-1] in kind.model_fields]
                names = " or ".join(str(kind.model_fields[section.tag].default) for kind in owners)
                picked = tag.value if tag else section.default_tag
                what = f"{leaf.key} is a setting of {section.tag} {names}; this recipe has {section.tag} {picked}"
                fix = f"take it out, or write {section.tag}: {names}"
                written.problems.append(Problem(what, leaf.where, fix))
    return bad


def _natural(path: Path, inside: list[Leaf]) -> str:
    """The first tag whose settings have every key that is written."""
    section = sections()[path]
    for kind in section.variants:
        if section.tag and all(leaf.path[-1] in kind.model_fields for leaf in inside):
            return str(kind.model_fields[section.tag].default)
    return section.tags()[0]


def _nest(written: Written, bad: set[Path]) -> dict[str, Any]:
    """The leaves as nested mappings; sections that must be there are there, so that their missing keys get named."""
    tree: dict[str, Any] = {}
    for path, section in sections().items():
        default = {section.tag: section.default_tag} if section.default_tag else {}
        if len(path) == 1 and (not section.tag or default):
            tree[path[0]] = default
    for path, leaf in written.leaves.items():
        if path in bad:
            continue
        into = tree
        for part in path[:-1]:
            inner = into.get(part)
            if inner is None:
                inner = into[part] = {}
            into = inner
        into[path[-1]] = leaf.value
    return tree


def _explain(error: ValidationError, written: Written, bad: set[Path]) -> None:
    """One problem for each setting that pydantic refused, in our words; `bad` are those already said."""
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        path = _setting(item["loc"])
        if path in bad or any(path[: len(done)] == done or done[:-1] == path for done in bad):
            continue
        bad.add(path)
        if item["type"] == "value_error" and path in sections():
            written.problems.append(_broken_rule(path, item["msg"], written))
            continue
        if path == ("data", "train") and ("data", "mixture") in written.leaves:
            continue  # it is the mixture that is wrong
        if path in written.leaves:
            written.problems.append(wrong_value(written.leaves[path], _picked(path, written)))
            continue
        inside = [leaf for leaf in written.leaves.values() if leaf.path[: len(path)] == path]
        if inside:  # a mapping of free keys, such as data.columns
            wrong = [leaf for leaf in inside if _is_wrong(leaf)]
            written.problems += [wrong_value(leaf) for leaf in wrong or inside]
        else:
            written.problems.append(_missing(path, written))


def _broken_rule(path: Path, said: str, written: Written) -> Problem:
    """What a settings type says of settings that are fine one by one: "what is wrong; what to do"."""
    what, _, fix = said.removeprefix("Value error, ").partition("; ")
    inside = [leaf for leaf in written.leaves.values() if leaf.path[:-1] == path]
    named = [leaf for leaf in inside if leaf.path[-1] in what] or inside
    where = named[0].where if named else written.places.get(path) or written.places[()]
    return Problem(f"{dotted(path)}: {what}", where, fix or "change one of the two")


def _setting(loc: tuple[int | str, ...]) -> Path:
    """The setting that a pydantic location is about: tags of unions and positions in lists taken out."""
    path: Path = ()
    for part in loc:
        longer = (*path, str(part))
        if longer in sections() or longer in leaves():
            path = longer
    return path


def _missing(path: Path, written: Written) -> Problem:
    section = sections()[path[:-1]]
    said = first_sentence(leaves()[path].get("description", ""))
    where = written.places.get(path[:-1]) or written.places[()]
    must = required(path, section.variants[0])
    under = f" under {dotted(path[:-1])}" if len(path) > 1 else ""
    fix = f"write {path[-1]}: …{under}. {said}"
    return Problem(f"{dotted(path)} is {'missing' if must else 'not readable'}", where, fix)


def _picked(path: Path, written: Written) -> object:
    """The method or format that the section of the key at `path` names, or has by default; None where it has none."""
    section = sections().get(path[:-1])
    if section is None or section.tag is None:
        return None
    tag = written.leaves.get((*path[:-1], section.tag))
    return tag.value if tag else section.default_tag


def wrong_value(leaf: Leaf, picked: object = None) -> Problem:
    """The problem of a value that its setting does not take, with what it takes and the nearest thing to type.

    `picked` is the method or format of its section, where several have settings of one name.
    """
    path, value = leaf.path, leaf.value
    if path[: len(OVERRIDES)] == OVERRIDES and len(path) > len(OVERRIDES):
        return _wrong_format(leaf)
    if path not in leaves():  # inside data.columns
        what = f"{leaf.key} is {show(value)}; expected the name of a column"
        return Problem(what, leaf.where, "write the column's name, in quotes if it is a number")
    name = leaf.key if leaf.key == dotted(path) else f"{leaf.key} ({dotted(path)})"
    what = f"{name} is {'empty' if value is None else show(value)}; expected {expected(path, picked)}"
    return Problem(what, leaf.where, _advice(path, value, picked))


def _is_wrong(leaf: Leaf) -> bool:
    """Whether a free key's value is itself at fault: a column must have a name, an override a number format."""
    if leaf.path[: len(OVERRIDES)] != OVERRIDES:
        return not isinstance(leaf.value, str)
    return _why_no_format(leaf.value) != ""


def _why_no_format(value: Any) -> str:
    """What is wrong with an override, to follow it in a sentence; empty where nothing is."""
    try:
        read_config(value)
    except NoFormat as error:
        return error.said
    return "has overrides of its own; write them side by side" if "overrides" in value else ""


def _wrong_format(leaf: Leaf) -> Problem:
    """The problem of an override that is no number format, or one with settings that it does not take."""
    said = _why_no_format(leaf.value)
    near = closest(leaf.value, choices(FORMAT)) if isinstance(leaf.value, str) else []
    fix = "write a format's name, such as int8, or its settings: {format: int4, group_size: 64}"
    what = f"{leaf.key} is {show(leaf.value)}, which {said}"
    return Problem(what, leaf.where, f"did you mean {' or '.join(near)}?" if near else fix)


def _advice(path: Path, value: Any, picked: object) -> str:
    key, words = path[-1], choices(path, picked)
    if isinstance(value, str) and accepts(path, "boolean") and value.lower() in YES_NO:
        return f"write {key}: {YES_NO[value.lower()]}"
    for item in value if isinstance(value, list) else [value]:
        near = closest(item, words) if isinstance(item, str) and item not in words else []
        if near:
            return f"did you mean {' or '.join(near)}?"
    if isinstance(value, str) and accepts(path, "array"):
        return f"write {key}: [{value}]"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not words and accepts(path, "string") and not accepts(path, "number"):
        return f"put it in quotes if it is meant: {key}: '{show(value)}'"
    if path == ("train", "warmup_ratio") and isinstance(value, int | float) and value >= 1:
        return f"a number of steps is warmup_steps: {value:g}"
    if path == ("train", "warmup_steps") and isinstance(value, float) and 0 < value < 1:
        return f"a share of the steps is warmup_ratio: {value:g}"
    if value == 0 and value is not False and accepts(path, "null"):
        return f"write {key}: null for none"
    schema = schema_of(path, picked)
    said = first_sentence(schema.get("description", ""))
    if "default" in schema:
        default = schema["default"]
        plain = f"{default:g}" if isinstance(default, float) else show(default, quote=False)
        return f"leave it out for the default, {plain}. {said}"
    return said


def first_sentence(text: str) -> str:
    """The first sentence of a description, on one line."""
    flat = " ".join(text.split())
    head, dot, _ = flat.partition(". ")
    return head + dot.strip()
