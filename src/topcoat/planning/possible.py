"""Settings that the shapes of a model rule out, found before anything is loaded: a rank above a matrix, groups of
weights that do not divide a row, a token that the embedding does not have, a pattern that names nothing.

`topcoat plan`, `topcoat train` and the search for other plans all ask here; the methods and the formats refuse in the
same words (`adapters/limits.py`, `quant/rows.py`) once they have the matrices in hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from topcoat.adapters.adalora_budget import resolved
from topcoat.adapters.limits import (
    OPEN,
    SAVED,
    TOKENS,
    carry_problem,
    frozen_problem,
    group_problem,
    rank_problem,
    tied_problem,
    tokens_problem,
    twice_problem,
)
from topcoat.adapters.patterns import check_patterns, chosen
from topcoat.adapters.settings import (
    AdaloraConfig,
    AdapterConfig,
    BesideConfig,
    LoraConfig,
    QaloraConfig,
    TargetedConfig,
    TokenRowsConfig,
)
from topcoat.errors import Problem, TopcoatError
from topcoat.planning.architecture import Architecture, BlockLinear
from topcoat.quant.rows import row_problem
from topcoat.quant.settings import GgufConfig, IntConfig, QuantConfig, StoredConfig

HEAD = "lm_head"
LOWS = ("Q4_1", "Q5_1")
"""GGUF block types with a lowest value, for each 32 weights."""


@dataclass(frozen=True)
class _Stored:
    """How every weight would be stored, by path."""

    linears: Mapping[str, QuantConfig | None]
    """Those of the blocks; None in the compute dtype."""
    outside: Mapping[str, str]
    """Head or embedding -> number format, where they are not left alone."""


def require_possible(
    a: Architecture, adapter: AdapterConfig, quantization: QuantConfig | None, *, labelled: bool = False
) -> None:
    """Raises TopcoatError with everything that no matrix of `a` can have. `labelled`: a head of labels or numbers takes
    the place of the one of tokens."""
    paths = {f"{a.prefix}.{at}.{linear.path}": linear for at in range(a.layers) for linear in a.linears}
    stored = _stored(a, paths, quantization)
    problems = [*_rows(a, paths, stored, quantization)]
    if isinstance(adapter, TargetedConfig):
        targets = {path: paths[path] for path in chosen(list(paths), adapter)}
        for name in ("rank_pattern", "alpha_pattern") if isinstance(adapter, LoraConfig) else ():
            check_patterns(name, getattr(adapter, name), targets)
        problems = [*_ranks(targets, adapter), *_carried(targets, stored, adapter), *problems]
    if isinstance(adapter, BesideConfig):
        problems += _outside(a, adapter, stored, labelled)
    if problems:
        raise TopcoatError.gather(problems)


def require_steps(adapter: AdapterConfig, steps: int | None) -> None:
    """Raises TopcoatError where AdaLoRA would have no step in which ranks could go, if the steps are known."""
    if isinstance(adapter, AdaloraConfig) and steps is not None:
        resolved(adapter, steps)


def _stored(a: Architecture, paths: Mapping[str, BlockLinear], quantization: QuantConfig | None) -> _Stored:
    """Raises TopcoatError for overrides that match nothing, or that store one tied weight in two ways."""
    ends = (a.embedding, HEAD)
    kept = dict(a.stored_formats) if isinstance(quantization, StoredConfig) else {}
    outside = {path: kept[path] for path in ends if path in kept}
    if quantization is None or not quantization.overrides:
        return _Stored(dict.fromkeys(paths, quantization), outside)
    from topcoat.quant.overrides import formats_by_path, override_of, require_one_way  # torch, which few recipes need

    formats = formats_by_path(quantization, [*paths, *ends], only_named=ends)
    asked = [override_of(quantization, path) for path in ends]
    if a.tied:
        require_one_way(ends, asked)
    outside |= {path: config.format for path, config in zip(ends, asked, strict=True) if config is not None}
    return _Stored({path: formats[path].config for path in paths}, outside)


def _ranks(targets: Mapping[str, BlockLinear], adapter: TargetedConfig) -> list[Problem]:
    """The first matrix that is too small for its rank."""
    found = (rank_problem(adapter, path, n.out_features, n.in_features, n.leaf) for path, n in targets.items())
    return [problem for problem in found if problem is not None][:1]


def _carried(targets: Mapping[str, BlockLinear], stored: _Stored, adapter: TargetedConfig) -> list[Problem]:
    """The first linear whose frozen weight cannot carry the method or its start."""
    if not isinstance(adapter, LoraConfig):
        return []
    for path, linear in targets.items():
        config = stored.linears[path]
        format = config.format if config else None
        named = f"{linear.leaf} is stored as {format or 'plain numbers'}"
        found = carry_problem(adapter.method, adapter.init_lora_weights, format, named)
        if found is not None:
            setting, what, fix = found
            return [Problem(f"{setting} {what}", setting, fix)]
        if isinstance(adapter, QaloraConfig) and config is not None and not _open(config):
            problem = group_problem(adapter.qalora_group_size, _low_group(config), config.format, linear.in_features)
            if problem is not None:
                return [replace(problem, what=f"{problem.what}: {linear.leaf}")]
    return []


def _open(config: QuantConfig) -> bool:
    """Whether only the files tell what is stored."""
    return config.format in OPEN or (isinstance(config, GgufConfig) and config.type == "stored")


def _low_group(config: QuantConfig) -> int | None:
    """Weights of a row that share a lowest value; None where there is none."""
    if isinstance(config, IntConfig):
        return config.group_size
    return 32 if isinstance(config, GgufConfig) and config.type in LOWS else None


def _rows(
    a: Architecture, paths: Mapping[str, BlockLinear], stored: _Stored, quantization: QuantConfig | None
) -> Iterator[Problem]:
    """Rows that groups or blocks of their format would cross, each problem with the linears that have it."""
    widths = sorted({linear.in_features for linear in paths.values()})
    ready = {path for path, _ in a.stored_formats}  # their reader has checked them, and the last group may be short
    refused: dict[Problem, list[str]] = {}
    for path, linear in paths.items():
        config = stored.linears[path]
        problem = None if config is None or path in ready else row_problem(config, linear.in_features, widths)
        if problem is not None:
            if config != quantization:
                problem = replace(problem, where="model.quantization.overrides")
            leaves = refused.setdefault(problem, [])
            leaves += [linear.leaf] if linear.leaf not in leaves else []
    for problem, leaves in refused.items():
        yield replace(problem, what=f"{problem.what}: {', '.join(leaves)}")


def _outside(a: Architecture, adapter: BesideConfig, stored: _Stored, labelled: bool) -> Iterator[Problem]:
    """What cannot train of the head and the embedding."""
    ends = [a.embedding] if labelled else [a.embedding, HEAD]
    saved = [path for path in ends if any(path == n or path.endswith(f".{n}") for n in adapter.modules_to_save)]
    for path in saved:
        if path in stored.outside:
            yield frozen_problem(SAVED, f"{path} whole", path, stored.outside[path])
        elif a.tied and not labelled:
            yield tied_problem(path, [other for other in ends if other != path])
    tokens = adapter.trainable_token_indices if isinstance(adapter, TokenRowsConfig) else []
    if not tokens:
        return
    if a.embedding in stored.outside:
        yield frozen_problem(TOKENS, f"rows of {a.embedding}", a.embedding, stored.outside[a.embedding])
    problem = tokens_problem(tokens, a.vocab) or (twice_problem(a.embedding) if a.embedding in saved else None)
    if problem is not None:
        yield problem
