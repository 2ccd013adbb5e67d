"""YAML and dotted overrides -> Recipe, every problem said at once with file and line; and Recipe -> complete YAML.

No tensor library is imported: a wrong recipe is refused in well under two seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from topcoat.config import Config
from topcoat.errors import Problem, TopcoatError
from topcoat.recipe.check import check
from topcoat.recipe.contradictions import find_contradictions
from topcoat.recipe.named_files import find_missing_files, near_names
from topcoat.recipe.rules import warn
from topcoat.recipe.schema import Recipe
from topcoat.recipe.written import EXCLUSIVE, Written, read_tree
from topcoat.recipe.yaml_text import parse_yaml, to_yaml
from topcoat.units import show_bytes

LARGEST = 2**16  # bytes; a recipe has about a thousand
Values = Mapping[str, Any]


def load_recipe(path: Path, overrides: Sequence[str] = (), *, check_files: bool = True) -> Recipe:
    """The recipe in `path`, with `key=value` overrides on top. Its notes and warnings are dropped.

    check_files=False accepts names of files that are not there (to read the recipe of a run made elsewhere).
    Raises TopcoatError with every problem found.
    """
    return load_recipe_with_notes(path, overrides, check_files=check_files)[0]


def load_recipe_with_notes(
    path: Path, overrides: Sequence[str] = (), *, check_files: bool = True
) -> tuple[Recipe, list[str]]:
    """The recipe, and what reading it brought up: other spellings, numbers in text, and lines that begin "warning:"."""
    return _finish(_read_file(Path(path)), overrides, check_files)


def recipe_from_dict(
    values: Values, where: str = "python", overrides: Sequence[str] = (), *, check_files: bool = True
) -> Recipe:
    """The recipe that nested mappings spell; settings objects may stand in them. Raises TopcoatError."""
    return recipe_from_dict_with_notes(values, where, overrides, check_files=check_files)[0]


def recipe_from_dict_with_notes(
    values: Values, where: str = "python", overrides: Sequence[str] = (), *, check_files: bool = True
) -> tuple[Recipe, list[str]]:
    """`recipe_from_dict`, and what reading brought up."""
    return _finish(read_tree(_plain(values), _always(where)), overrides, check_files)


def dump_recipe(recipe: Recipe) -> str:
    """`recipe` as YAML with every value written; loading it gives an equal recipe.

    Of two settings that exclude each other (batch_size and batch_tokens) only the one that decides is written.
    """
    values = recipe.model_dump(mode="json")
    for first, second, _ in EXCLUSIVE:
        section, name = first
        if values[section][second[1]] is not None and values[section][name] == _default(first):
            del values[section][name]
    return to_yaml(values)


def _default(path: tuple[str, str]) -> object:
    fields: dict[str, Any] = Recipe.model_fields[path[0]].default.model_dump(mode="json")
    return fields[path[1]]


def _finish(written: Written, overrides: Sequence[str], check_files: bool) -> tuple[Recipe, list[str]]:
    written.override(_read_overrides(overrides))
    recipe = check(written)
    find_contradictions(written)
    if check_files:
        find_missing_files(written)
    if written.problems or recipe is None:
        raise TopcoatError.gather(sorted(written.problems, key=_line))
    return recipe, written.notes + warn(recipe)


def _line(problem: Problem) -> int:
    found = re.search(r"line (\d+)$", problem.where)
    return int(found[1]) if found else 0


def _read_file(path: Path) -> Written:
    """The leaves of a recipe file."""
    if path.is_dir():
        inner = path / "recipe.yaml"
        fix = f"name the file: {inner}" if inner.exists() else near_names(inner)
        raise TopcoatError(f"{path} is a folder", fix=fix)
    if not path.exists():
        raise TopcoatError(f"there is no recipe {path}", fix=near_names(path))
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise TopcoatError(f"{path} is {show_bytes(size)}; a recipe is a short YAML file", fix=near_names(path))
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TopcoatError("this is not UTF-8 text", f"{path} line {line}", "save the file as UTF-8") from error
    except OSError as error:
        raise TopcoatError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error
    parsed = parse_yaml(text, str(path))
    if not isinstance(parsed.values, dict):
        what = "the recipe is empty" if parsed.values is None else f"{path} is no recipe: it has no `key: value` lines"
        raise TopcoatError(what, f"{path} line 1", "topcoat init --model PATH --data FILE writes one")

    def where(key: tuple[str, ...]) -> str:
        while key and key not in parsed.lines:
            key = key[:-1]
        return f"{path} line {parsed.lines.get(key, 1)}"

    written = read_tree(parsed.values, where)
    written.problems = parsed.twice + written.problems
    return written


def _read_overrides(overrides: Sequence[str]) -> Written:
    """The leaves that `key=value` arguments write; values are YAML."""
    all_written = Written()
    for text in overrides:
        place = f"override {text}"
        key, equals, value = text.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            fix = "write key=value without spaces around =, such as train.epochs=1"
            all_written.problems.append(Problem(f"{text!r} is no override", place, fix))
            continue
        try:
            parsed = parse_yaml(value, place)
        except TopcoatError as error:
            all_written.problems += [Problem(said.what, place, said.fix) for said in error.problems]
            continue
        all_written.problems += [Problem(said.what, place, said.fix) for said in parsed.twice]
        tree: Any = parsed.values
        for part in reversed(parts):
            tree = {part: tree}
        one = read_tree(tree, _always(place))
        for leaf in one.leaves.values():
            all_written.put(leaf)
        all_written.problems += one.problems
        all_written.notes += one.notes
    return all_written


def _always(place: str) -> Callable[[tuple[str, ...]], str]:
    """Where every key stands, for a source without lines."""
    return lambda path: place


def _plain(values: Any) -> Any:
    """Settings objects as mappings of what was set in them, paths as text, tuples as lists."""
    if isinstance(values, Config):
        kept = values.model_fields_set | ({"method", "format"} & set(type(values).model_fields))
        return {name: _plain(value) for name, value in values if name in kept}
    if isinstance(values, Mapping):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return str(values) if isinstance(values, Path) else values
