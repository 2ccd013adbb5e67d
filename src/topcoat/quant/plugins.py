"""Number formats of other packages, registered as entry points of the group `topcoat.formats`.

    [project.entry-points."topcoat.formats"]
    ternary = "topcoat_ternary:Ternary"

A package is imported only when a recipe names its format. Any quantizer that can quantize and dequantize trains this
way, as in ModuLoRA (Yin et al. 2023, arXiv:2309.16119).
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from pydantic import ValidationError

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantFormat
from topcoat.quant.settings import PluginConfig

GROUP = "topcoat.formats"
WHERE = "model.quantization.name"


def load_plugin(config: PluginConfig) -> QuantFormat:
    """The format that `config` names, with its own settings.

    Raises:
        TopcoatError: no package or several register it, it cannot be imported, is no QuantFormat, or has no such
            settings; the package is named.
    """
    entry = _find(config.name)
    package = _package(entry)
    try:
        kind = entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise TopcoatError(
            f"{package} registers the number format {config.name!r}, which cannot be loaded: {error}",
            where=WHERE,
            fix=f"repair or reinstall {package}",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, QuantFormat)):
        raise TopcoatError(
            f"{package} registers {entry.value} as a number format, and it is no subclass of QuantFormat",
            where=WHERE,
            fix="see the example package, examples/topcoat-ternary",
        )
    try:
        made = kind(kind.Config(**config.settings))
    except (ValidationError, TypeError) as error:
        said = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in said)
        own = [name for name in kind.Config.model_fields if name not in ("format", "overrides")]
        raise TopcoatError(
            f"{package} does not take these settings for {config.name!r}: {wrong}",
            where="model.quantization.settings",
            fix=f"its settings are {', '.join(own)}" if own else "it has no settings",
        ) from error
    made.named = config.model_copy(update={"overrides": {}})
    return made


def _find(name: str) -> EntryPoint:
    """The one entry point of that name."""
    entries = list(entry_points(group=GROUP))
    found = [entry for entry in entries if entry.name == name]
    if not found and not name:
        raise TopcoatError(
            "format plugin is a format of another package, and nothing says which",
            where=WHERE,
            fix=f"write name: one of those registered under {GROUP}: {_there(entries)}",
        )
    if not found:
        raise TopcoatError(
            f"no installed package registers the number format {name!r}",
            where=WHERE,
            fix=f"install the package that has it; registered under {GROUP}: {_there(entries)}",
        )
    if len({entry.value for entry in found}) > 1:
        raise TopcoatError(
            f"{' and '.join(sorted({_package(entry) for entry in found}))} both register the number format {name!r}",
            where=WHERE,
            fix="uninstall one of them",
        )
    return found[0]


def _there(entries: list[EntryPoint]) -> str:
    return ", ".join(sorted({entry.name for entry in entries})) or "none"


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.module
