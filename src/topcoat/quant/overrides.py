"""Mixed precision: which linear is stored in which format, by the pattern of its path."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantFormat
from topcoat.quant.formats import make_format
from topcoat.quant.settings import QuantConfig, read_config


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` (with * and ? as in file names) fits the module `path`, or its end from a dot on."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def names(pattern: str, path: str) -> bool:
    """Whether `pattern` fits `path` and ends in its very name: what is asked of the head and the embedding."""
    return pattern.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1] and matches(pattern, path)


def override_of(config: QuantConfig, path: str) -> QuantConfig | None:
    """The settings of the first override that `names` the head or the embedding at `path`."""
    return next((read_config(value) for p, value in config.overrides.items() if names(p, path)), None)


def require_one_way(paths: Sequence[str], asked: Sequence[QuantConfig | None]) -> None:
    """Raises TopcoatError where `paths` are one weight and `asked` would store it in two ways."""
    if any(one != asked[0] for one in asked):
        raise TopcoatError(
            f"{' and '.join(paths)} are one weight in this model (tie_word_embeddings), and the overrides store them "
            "in two ways",
            where="model.quantization.overrides",
            fix=f"name both with one format, or neither: {' and '.join(path.rsplit('.')[-1] for path in paths)}",
        )


def formats_by_path(
    config: QuantConfig, paths: Iterable[str], only_named: Collection[str] = ()
) -> dict[str, QuantFormat]:
    """Path -> the format it is stored in: that of the first pattern of `config.overrides` that fits, else `config`'s.

    `only_named` are those of `paths` that a pattern must name. Linears of one format share the object.

    Raises:
        TopcoatError: a pattern fits none of `paths`.
    """
    paths = list(paths)

    def fits(pattern: str, path: str) -> bool:
        return names(pattern, path) if path in only_named else matches(pattern, path)

    by_pattern = {pattern: make_format(read_config(value)) for pattern, value in config.overrides.items()}
    unused = [pattern for pattern in by_pattern if not any(fits(pattern, path) for path in paths)]
    if unused:
        ends = sorted({path.rsplit(".", 1)[-1] for path in paths})
        raise TopcoatError(
            f"model.quantization.overrides matched no linear layer: {unused}",
            where="model.quantization.overrides",
            fix=f"the linears of this model end in {', '.join(ends)}",
        )
    own = make_format(config)
    return {path: next((f for p, f in by_pattern.items() if fits(p, path)), own) for path in paths}
