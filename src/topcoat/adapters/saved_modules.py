"""Which modules `modules_to_save` means, and why some cannot be trained whole beside an adapter."""

from __future__ import annotations

from torch import nn

from topcoat.adapters.limits import frozen_problem, tied_problem
from topcoat.adapters.targets import adaptable_linears
from topcoat.errors import TopcoatError
from topcoat.quant.frozen import Frozen
from topcoat.quant.linear import FrozenLinear


def modules_to_save(model: nn.Module, names: list[str], targets: list[str], *, from_file: bool = False) -> list[str]:
    """The paths that `names` mean, each once. Raises TopcoatError for those that cannot be trained whole.

    A file's names may mean nothing here: PEFT writes both "classifier" and "score" for every model that labels, and
    which tensors there are is checked when they are read.
    """
    modules = dict(model.named_modules())
    paths: list[str] = []
    for name in names:
        hits = [p for p in modules if p and (p == name or p.endswith("." + name))]
        if not hits and not from_file:
            raise TopcoatError(
                f"adapter.modules_to_save names {name!r}, which no module of this model has",
                where="adapter.modules_to_save",
                fix="name modules as the model does, such as lm_head or embed_tokens",
            )
        paths += [path for path in hits if path not in paths]
    linears = adaptable_linears(model)
    for path in paths:
        module = modules[path]
        if isinstance(module, Frozen) and path not in linears:  # the head or the embedding
            raise frozen_outside("adapter.modules_to_save", f"{path} whole", path, module)
        if path in targets:
            raise TopcoatError(
                f"{path} is in both adapter.target_modules and adapter.modules_to_save",
                where="adapter.modules_to_save",
                fix="name it in one of the two",
            )
        inside = [p for p in paths if p.startswith(path + ".")] + [p for p in targets if p.startswith(path + ".")]
        stored = any(isinstance(module, FrozenLinear) for module in modules[path].modules())
        if inside or stored or not list(modules[path].parameters()):
            why = f"contains {inside[0]}, which is trained already" if inside else "has no parameters of its own"
            raise TopcoatError(
                f"adapter.modules_to_save names {path}, which {'holds frozen linears' if stored else why}",
                where="adapter.modules_to_save",
                fix="name linears inside the blocks in adapter.target_modules; modules_to_save is for the head, the "
                "embedding and norms",
            )
    _refuse_tied(model, paths)
    return paths


def frozen_outside(setting: str, trained: str, path: str, module: Frozen) -> TopcoatError:
    """What to say where `setting` trains a head or an embedding that the quantization has stored and frozen."""
    return TopcoatError.gather([frozen_problem(setting, trained, path, module.weight_state.format)])


def _refuse_tied(model: nn.Module, paths: list[str]) -> None:
    """A copy of one of two tied modules would silently separate them (pitfall P51)."""
    modules = dict(model.named_modules())
    by_weight: dict[int, list[str]] = {}
    for path, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                by_weight.setdefault(id(parameter), []).append(path)
    for path in paths:
        for parameter in modules[path].parameters():
            owners = by_weight[id(parameter)]
            if len(owners) > 1:
                raise TopcoatError.gather([tied_problem(path, [p for p in owners if p != path])])
