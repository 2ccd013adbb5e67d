"""What a recipe accepts, read off the settings types: its sections, their keys, and each key's values in plain words.

Nothing is listed by hand here. A new adapter method or number format is accepted, suggested and explained from the
moment its settings stand in the union of `adapters/settings.py` or `quant/settings.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from topcoat.config import Config
from topcoat.recipe.schema import Recipe

Path = tuple[str, ...]  # ("train", "epochs"); () is the recipe itself
PATTERN_WORDS = {"model.device": "auto, cpu, cuda, cuda:N, mps or xpu"}  # what the regular expression means
REST = {"null": "null", "string": "text", "boolean": "true or false", "integer": "a whole number", "number": "a number"}


@dataclass(frozen=True)
class Section:
    """A group of keys: one settings type, or several of which a tag (`method`, `format`) picks one."""

    path: Path
    variants: tuple[type[Config], ...]
    tag: str | None
    default_tag: str | None
    nullable: bool

    @property
    def keys(self) -> list[str]:
        """Every key that some variant accepts, in the order of the settings types."""
        return list(dict.fromkeys(key for variant in self.variants for key in variant.model_fields))

    def variant(self, value: object) -> type[Config] | None:
        """The settings type whose tag is `value`; None when there is none such."""
        if self.tag is None:
            return self.variants[0]
        for variant in self.variants:
            if value in get_args(variant.model_fields[self.tag].annotation):
                return variant
        return None

    def tags(self) -> list[str]:
        """Every value of the tag."""
        if self.tag is None:
            return []
        return [value for variant in self.variants for value in get_args(variant.model_fields[self.tag].annotation)]


@cache
def sections() -> dict[Path, Section]:
    """Every section of a recipe by its path, the recipe itself under ()."""
    found: dict[Path, Section] = {}

    def visit(section: Section) -> None:
        found[section.path] = section
        for variant in section.variants:
            for key, field in variant.model_fields.items():
                inner = _settings_types(field.annotation)
                if inner:
                    tag = str(field.discriminator) if field.discriminator else _annotated_tag(field.annotation)
                    default = getattr(field.default, tag, None) if tag else None
                    nullable = type(None) in get_args(field.annotation)
                    visit(Section((*section.path, key), inner, tag, default, nullable))

    visit(Section((), (Recipe,), None, None, False))
    return found


def _settings_types(annotation: Any) -> tuple[type[Config], ...]:
    """The settings types inside an annotation such as `Annotated[A | B, ...] | None`."""
    if isinstance(annotation, type):
        return (annotation,) if issubclass(annotation, Config) else ()
    if get_origin(annotation) is list:  # a value of many parts, such as data.mixture, and no section
        return ()
    return tuple(kind for part in get_args(annotation) for kind in _settings_types(part))


def _annotated_tag(annotation: Any) -> str | None:
    """The discriminator inside `Annotated[A | B, Field(discriminator=...)] | None`."""
    for part in get_args(annotation):
        for extra in getattr(part, "__metadata__", ()):
            if extra.discriminator:
                return str(extra.discriminator)
    return None


@cache
def leaves() -> dict[Path, dict[str, Any]]:
    """Every key that holds a value (not a section), with its JSON Schema, which names what it accepts."""
    found: dict[Path, dict[str, Any]] = {}
    for section in sections().values():
        for variant in section.variants:
            properties: dict[str, dict[str, Any]] = variant.model_json_schema()["properties"]
            for key, schema in properties.items():
                path = (*section.path, key)
                if path not in sections():
                    known = found.get(path)
                    if known and key != section.tag:  # the first variant's words stand for a key that several have
                        continue
                    if known:  # the tag accepts what any variant calls itself
                        schema = {**known, "enum": section.tags()}
                        schema.pop("const", None)
                    found[path] = schema
    return found


def schema_of(path: Path, picked: object = None) -> dict[str, Any]:
    """The JSON Schema of a key; of several variants' keys of one name that of the variant `picked`, if it has it."""
    section = sections().get(path[:-1])
    variant = section.variant(picked) if section and section.tag and path[-1] != section.tag else None
    own: dict[str, dict[str, Any]] = variant.model_json_schema()["properties"] if variant else {}
    return own.get(path[-1]) or leaves()[path]


def dotted(path: Path) -> str:
    """("train", "epochs") -> "train.epochs"."""
    return ".".join(path)


def required(path: Path, variant: type[Config]) -> bool:
    """Whether the key must be written."""
    return variant.model_fields[path[-1]].is_required()


def accepts(path: Path, kind: str) -> bool:
    """Whether the key takes values of a JSON type: "number" (also said of whole numbers), "integer", "string" …"""
    kinds = {kind, "integer"} if kind == "number" else {kind}
    return any(part.get("type") in kinds for part in _parts(leaves()[path]))


def is_mapping(path: Path) -> bool:
    """Whether the key's value is itself a mapping of free keys, such as data.columns."""
    return path in leaves() and accepts(path, "object")


def choices(path: Path, picked: object = None) -> list[str]:
    """The words a key accepts, such as ["cosine", "linear", "constant"]; empty where any value may stand."""
    words: list[str] = []
    for part in _parts(schema_of(path, picked)):
        inner = part["items"] if part.get("type") == "array" else part
        words += [str(word) for word in _words(inner)]
    return words


def expected(path: Path, picked: object = None) -> str:
    """What a key accepts, for people: "a number above 0 and below 1, or auto"."""
    if dotted(path) in PATTERN_WORDS:
        return PATTERN_WORDS[dotted(path)]
    *most, last = [_say(part) for part in _parts(schema_of(path, picked))]
    return f"{', '.join(most)}, or {last}" if most else last


def _parts(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, those with bounds first, words next, null last."""
    parts = schema.get("anyOf", [schema])
    order = {"integer": 0, "number": 0, "array": 1, "object": 1, "string": 2, "boolean": 2, "null": 3}
    return sorted(parts, key=lambda part: order.get(part.get("type", "string"), 2))


def _words(schema: dict[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _say(part: dict[str, Any]) -> str:
    words = [str(word).lower() if isinstance(word, bool) else str(word) for word in _words(part)]
    if words:
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if part.get("type") == "array":
        words = [str(word) for word in _words(part["items"])]
        if "$ref" in part["items"]:
            return "a list such as [{train_file: a.jsonl, weight: 3}, {train_file: b.jsonl, weight: 1}]"
        if part["items"].get("type") == "integer":
            return "a list of whole numbers such as [0, 1]"
        return f"a list of these: {', '.join(words)}" if words else "a list of names such as [q_proj, v_proj]"
    if part.get("type") == "object":
        values = part.get("additionalProperties")
        if isinstance(values, dict) and values.get("type") in ("integer", "number"):
            return "a mapping of names and numbers, such as {q_proj: 8}"
        if isinstance(values, dict) and "anyOf" in values:
            return "a mapping such as {down_proj: int8}"
        return "a mapping of names, such as {prompt: question}"
    return REST[part["type"]] + _bounds(part)


def _bounds(part: dict[str, Any]) -> str:
    said = [
        f"{word} {part[key]:g}" if part[key] < 1e6 else f"{word} {part[key]}"
        for key, word in (
            ("exclusiveMinimum", "above"),
            ("minimum", "of at least"),
            ("exclusiveMaximum", "below"),
            ("maximum", "of at most"),
        )
        if key in part
    ]
    return " " + " and ".join([*said[:1], *(word.removeprefix("of ") for word in said[1:])]) if said else ""


def closest(word: str, among: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The one or two of `among` that a misspelt `word` most likely meant, best first; two only where they tie."""
    plain = word.strip().lower().replace("-", "_")
    names = {name.lower(): name for name in among}
    if plain in names:
        return [names[plain]]
    scored = sorted(((difflib.SequenceMatcher(None, plain, name).ratio(), name) for name in names), reverse=True)
    close = [(score, names[name]) for score, name in scored if score >= cutoff]
    return [name for score, name in close[:2] if score > close[0][0] - 0.02]
