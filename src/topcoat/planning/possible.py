"""Settings that the shapes of a model rule out, found before anything is loaded: a rank above a matrix, groups of
weights that do not divide a row. A run refuses the same when it has the matrices in hand.
"""

from __future__ import annotations

from topcoat.adapters.adalora_budget import resolved
from topcoat.adapters.patterns import chosen
from topcoat.adapters.settings import AdaloraConfig, AdapterConfig, LoraConfig
from topcoat.errors import Problem, TopcoatError
from topcoat.planning.architecture import Architecture, BlockLinear
from topcoat.quant.settings import IntConfig, QuantConfig

GROUPS = (16, 32, 64, 128, 256)


def require_possible(a: Architecture, adapter: AdapterConfig, quantization: QuantConfig | None) -> None:
    """Raises TopcoatError with everything that no matrix of `a` can have."""
    linears = {f"{a.prefix}.0.{linear.path}": linear for linear in a.linears}
    problems = [*_ranks(linears, adapter), *_groups(linears, quantization)]
    if problems:
        raise TopcoatError.gather(problems)


def require_steps(adapter: AdapterConfig, steps: int | None) -> None:
    """Raises TopcoatError where AdaLoRA would have no step in which ranks could go, if the steps are known."""
    if isinstance(adapter, AdaloraConfig) and steps is not None:
        resolved(adapter, steps)


def _ranks(linears: dict[str, BlockLinear], adapter: AdapterConfig) -> list[Problem]:
    """The first matrix that is too small for its rank."""
    if not isinstance(adapter, LoraConfig):
        return []
    first_block = adapter.model_copy(update={"layers_to_transform": None})
    for path in chosen(list(linears), first_block):
        linear, r = linears[path], adapter.at(path).r
        most = min(linear.out_features, linear.in_features)
        if r > most:
            shape = f"({linear.out_features}, {linear.in_features})"
            what = f"rank {r} is above {linear.leaf}'s, which is {shape}: no change of it has a rank over {most}"
            where = "adapter.r" if r == adapter.r else "adapter.rank_pattern"
            return [Problem(what, where, f"write a smaller r, or rank_pattern: {{{linear.leaf}: {most}}}")]
    return []


def _groups(linears: dict[str, BlockLinear], quantization: QuantConfig | None) -> list[Problem]:
    """The rows that groups of this size would cross, if nothing overrides their format."""
    if not isinstance(quantization, IntConfig) or quantization.overrides:
        return []
    size = quantization.group_size
    crossed = {linear.leaf: linear.in_features for linear in linears.values() if linear.in_features % size}
    if not crossed:
        return []
    fitting = [group for group in GROUPS if not any(linear.in_features % group for linear in linears.values())]
    said = ", ".join(f"{leaf} ({width:,})" for leaf, width in crossed.items())
    fix = f"use a group_size of {' or '.join(map(str, fitting))}" if fitting else "use nf4 or int8"
    what = f"group_size {size} does not divide the rows of {said}"
    return [Problem(what, "model.quantization.group_size", fix)]
