"""Which linears an adapter goes on: "all-linear", names, or regular expressions over the module's path.

A name is the last part of a path, or several of them (`q_proj`, `mlp.down_proj`); a string that is no plain name is a
regular expression that must match the whole path. A pattern that matches nothing is an error: a run that adapts fewer
modules than asked looks normal and learns less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from topcoat.errors import TopcoatError
from topcoat.quant.linear import FrozenLinear

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def adaptable_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> linear, for all linears of `model` but its output head, in the order of the model."""
    get_head = getattr(model, "get_output_embeddings", None)  # transformers models have it, bare torch modules do not
    head = get_head() if get_head else None
    return {
        path: module
        for path, module in model.named_modules()
        if path and isinstance(module, FrozenLinear | nn.Linear) and module is not head
    }


def find_targets(paths: Iterable[str], targets: str | Sequence[str]) -> list[str]:
    """The paths that `targets` names, in the order of `paths`.

    Raises TopcoatError for every pattern that matches none.
    """
    paths = list(paths)
    if targets == "all-linear":
        if not paths:
            raise TopcoatError("the model has no linear layer to adapt", fix="use method: full for this architecture")
        return paths
    patterns = [targets] if isinstance(targets, str) else list(targets)
    matched = {pattern: [path for path in paths if _matches(pattern, path)] for pattern in patterns}
    empty = [pattern for pattern, hits in matched.items() if not hits]
    if empty or not patterns:
        roles = ", ".join(Counter(path.rsplit(".", 1)[-1] for path in paths))
        raise TopcoatError(
            f"adapter.target_modules matched no linear layer: {empty}",
            where="adapter.target_modules",
            fix=f"this model has {roles}; or write target_modules: all-linear",
        )
    wanted = {path for hits in matched.values() for path in hits}
    return [path for path in paths if path in wanted]


def _matches(pattern: str, path: str) -> bool:
    if _NAME.fullmatch(pattern):
        return path == pattern or path.endswith("." + pattern)
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise TopcoatError(
            f"adapter.target_modules has {pattern!r}, which is no regular expression: {error}",
            where="adapter.target_modules",
            fix="write a module name such as q_proj, or a valid pattern",
        ) from error
