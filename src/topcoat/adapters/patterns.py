"""Which of a model's linears a setting names, by path alone: "all-linear", names, or regular expressions. No torch.

A name is the last part of a path, or several of them (`q_proj`, `mlp.down_proj`); a string that is no plain name is a
regular expression that must match the whole path. A pattern that matches nothing is an error: a run that adapts fewer
modules than asked looks normal and learns less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from topcoat.adapters.settings import TargetedConfig
from topcoat.errors import TopcoatError

ALL_LINEAR = {"target_modules": "; or write target_modules: all-linear"}
ENDS = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "score")
"""What heads and embeddings are called."""
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def find_targets(paths: Iterable[str], targets: str | Sequence[str], setting: str = "target_modules") -> list[str]:
    """The paths that `targets` names, in the order of `paths`.

    Raises TopcoatError for every pattern that matches none.
    """
    paths = list(paths)
    if targets == "all-linear":
        if not paths:
            raise TopcoatError("the model has no linear layer to adapt", fix="use method: full for this architecture")
        return paths
    patterns = [targets] if isinstance(targets, str) else list(targets)
    matched = {pattern: [path for path in paths if _matches(pattern, path, setting)] for pattern in patterns}
    empty = [pattern for pattern, hits in matched.items() if not hits]
    if empty or not patterns:
        raise TopcoatError(
            f"adapter.{setting} matched no linear layer: {empty}",
            where=f"adapter.{setting}",
            fix=f"this model has {_roles(paths)}" + ALL_LINEAR.get(setting, "") + _ends(setting, empty),
        )
    wanted = {path for hits in matched.values() for path in hits}
    return [path for path in paths if path in wanted]


def _ends(setting: str, empty: Sequence[str]) -> str:
    """What to do with a head or an embedding that was named: they are no linears of the blocks."""
    ends = [name for name in empty if name.rpartition(".")[2] in ENDS]
    if setting != "target_modules" or not ends:
        return ""
    return f"; {' and '.join(ends)} can train whole, in adapter.modules_to_save, if untied and not quantized"


def chosen(paths: Sequence[str], config: TargetedConfig) -> list[str]:
    """The paths that `config` adapts: its target_modules in its layers, without those it excludes.

    Raises TopcoatError for a pattern, a layer or a rank that no linear has, and where nothing is left.
    """
    targets = find_targets(paths, config.target_modules)
    layers = {path: layer_number(path) for path in paths}
    if config.layers_to_transform is not None:
        absent = sorted(set(config.layers_to_transform) - set(layers.values()))
        if absent or not config.layers_to_transform:
            last = max((number for number in layers.values() if number is not None), default=None)
            raise TopcoatError(
                f"adapter.layers_to_transform names no block that is there: {absent}",
                where="adapter.layers_to_transform",
                fix="this model has no numbered blocks" if last is None else f"this model has blocks 0 to {last}",
            )
        targets = [path for path in targets if layers[path] in config.layers_to_transform]
    for pattern in config.exclude_modules:
        if not any(_matches(pattern, path, "exclude_modules") for path in paths):
            raise TopcoatError(
                f"adapter.exclude_modules has {pattern!r}, which matches no linear layer",
                where="adapter.exclude_modules",
                fix=f"this model has {_roles(paths)}",
            )
        targets = [path for path in targets if not _matches(pattern, path, "exclude_modules")]
    if not targets:
        raise TopcoatError(
            "the adapter's settings leave no linear layer to adapt",
            where="adapter.exclude_modules" if config.exclude_modules else "adapter.layers_to_transform",
            fix="exclude less, or name other layers",
        )
    return targets


def check_patterns(name: str, patterns: Iterable[str], targets: Iterable[str]) -> None:
    """Raises TopcoatError for a pattern of adapter.`name` that is none, or that matches no adapted linear."""
    targets = list(targets)
    for pattern in patterns:
        try:
            hit = any(re.fullmatch(rf"(.*\.)?({pattern})", path) for path in targets)
        except re.error as error:
            raise _no_expression(name, pattern, error) from error
        if not hit:
            raise TopcoatError(
                f"adapter.{name} has {pattern!r}, which matches none of the adapted linears",
                where=f"adapter.{name}",
                fix=f"they are {_roles(targets)}",
            )


def layer_number(path: str) -> int | None:
    """The block that `path` lies in: the first number in it."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _roles(paths: Iterable[str]) -> str:
    return ", ".join(Counter(path.rsplit(".", 1)[-1] for path in paths))


def _matches(pattern: str, path: str, setting: str = "target_modules") -> bool:
    if _NAME.fullmatch(pattern):
        return path == pattern or path.endswith("." + pattern)
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise _no_expression(setting, pattern, error) from error


def _no_expression(setting: str, pattern: str, error: re.error) -> TopcoatError:
    return TopcoatError(
        f"adapter.{setting} has {pattern!r}, which is no regular expression: {error}",
        where=f"adapter.{setting}",
        fix="write a module name such as q_proj, or a valid pattern",
    )
