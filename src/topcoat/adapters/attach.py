"""Put adapters on a model, switch them off and on, take them off, and list exactly what trains.

    adapters = attach(model, LoraConfig(r=16))      # from here on, the only parameters that train
    with adapters.off(): ...                        # the base alone, bit for bit
    adapters.detach()                               # the model as it was

Only submodules of this one model instance are replaced. A linear that is not yet a `FrozenLinear` becomes one that
shares its weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.methods import METHODS
from topcoat.adapters.settings import AdapterConfig, FullConfig, LoraConfig
from topcoat.adapters.targets import adaptable_linears, find_targets
from topcoat.adapters.trained_copy import TrainedCopy
from topcoat.errors import TopcoatError
from topcoat.quant.linear import FrozenLinear


@dataclass
class Adapters:
    """What `attach` put on `model`: the adapted linears and the modules trained whole, by path."""

    model: nn.Module
    config: AdapterConfig
    layers: dict[str, Adapter] = field(default_factory=dict)
    copies: dict[str, TrainedCopy] = field(default_factory=dict)
    replaced: dict[str, nn.Module] = field(default_factory=dict)
    trained_before: list[nn.Parameter] = field(default_factory=list)
    """Parameters that wanted gradients before `attach` froze them; `detach` lets them train again."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by its name in the plain model: `<path>.lora_A`, or `<path>.weight` of a copy."""
        if isinstance(self.config, FullConfig):
            return dict(self.model.named_parameters())  # a tied weight appears once
        named: dict[str, nn.Parameter] = {}
        for path, layer in self.layers.items():
            named |= {f"{path}.{name}": p for name, p in layer.named_parameters() if not name.startswith("base.")}
        for path, module in self.copies.items():
            named |= {f"{path}.{name}": p for name, p in module.copy.named_parameters()}
        return named

    def count(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model computes as if nothing were attached; afterwards as it did before."""
        modules = [*self.layers.values(), *self.copies.values()]
        before = [module.enabled for module in modules]
        self.switch(False)
        try:
            yield
        finally:
            for module, enabled in zip(modules, before, strict=True):
                module.enabled = enabled

    def switch(self, enabled: bool) -> None:
        """Adapter on or off, until switched again.

        Raises TopcoatError for full fine-tuning, which has changed the base itself.
        """
        if isinstance(self.config, FullConfig):
            raise TopcoatError(
                "full fine-tuning has no adapter to switch off: the base's own weights were trained",
                fix="load the base model beside it to compare",
            )
        for layer in self.layers.values():
            layer.enabled = enabled
        for module in self.copies.values():
            module.enabled = enabled

    def detach(self) -> nn.Module:
        """Take everything off: the model is what it was before `attach`.

        Raises TopcoatError for full fine-tuning, which has changed the base itself.
        """
        if isinstance(self.config, FullConfig):
            raise TopcoatError(
                "full fine-tuning has no adapter to take off: the base's own weights were trained",
                fix="load the base model again",
            )
        for path, module in self.replaced.items():
            _replace(self.model, path, module)
        for parameter in self.trained_before:
            parameter.requires_grad_(True)
        self.layers, self.copies, self.replaced, self.trained_before = {}, {}, {}, []
        return self.model


def attach(model: nn.Module, config: AdapterConfig, seed: int = 42) -> Adapters:
    """Freeze `model` and put `config`'s method on the linears it names; the start follows from `seed` and the path.

    Raises TopcoatError when a pattern matches nothing, or something is attached already; the model is then untouched.
    """
    if any(isinstance(module, Adapter | TrainedCopy) for module in model.modules()):
        raise TopcoatError(
            "the model already carries an adapter",
            fix="call detach() on it first, or load the base model again",
        )
    adapters = Adapters(model, config, trained_before=[p for p in model.parameters() if p.requires_grad])
    if isinstance(config, FullConfig):
        _train_everything(adapters)
        return adapters
    assert isinstance(config, LoraConfig)  # the only other settings type so far
    linears = adaptable_linears(model)
    targets = find_targets(linears, config.target_modules)
    saved = _modules_to_save(model, config.modules_to_save, targets)
    model.requires_grad_(False)
    for path in targets:
        layer = METHODS[config.method](frozen(linears[path]), config)  # type: ignore[call-arg]
        layer.reset(_generator(seed, path))
        layer.train(model.training)
        adapters.layers[path] = layer
        adapters.replaced[path] = _replace(model, path, layer)
    for path in saved:
        module = TrainedCopy(model.get_submodule(path))
        adapters.copies[path] = module
        adapters.replaced[path] = _replace(model, path, module)
    return adapters


def frozen(linear: nn.Module) -> FrozenLinear:
    """`linear` as a FrozenLinear that shares its weight; unchanged if it is one."""
    if isinstance(linear, FrozenLinear):
        return linear
    assert isinstance(linear, nn.Linear)
    return FrozenLinear.share(linear)


def _train_everything(adapters: Adapters) -> None:
    """Every parameter becomes a trainable float32 master; dense frozen linears become ordinary ones again."""
    model = adapters.model
    linears = {path: module for path, module in model.named_modules() if isinstance(module, FrozenLinear)}
    for path, module in linears.items():
        if module.format.quantized:
            raise TopcoatError(
                f"full fine-tuning needs floating point weights, and {path} is stored as {module.weight_state.format}",
                where="model.quantization",
                fix="remove model.quantization, or use method: lora",
            )
    for path, module in linears.items():
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        linear.weight = nn.Parameter(module.dense_weight(torch.float32))
        if module.bias is not None:
            linear.bias = nn.Parameter(module.bias.float())
        adapters.replaced[path] = _replace(model, path, linear)
    model.to(torch.float32).requires_grad_(True)


def _modules_to_save(model: nn.Module, names: list[str], targets: list[str]) -> list[str]:
    """The paths that `names` mean, each once. Raises TopcoatError for those that cannot be trained whole."""
    modules = dict(model.named_modules())
    paths: list[str] = []
    for name in names:
        hits = [p for p in modules if p and (p == name or p.endswith("." + name))]
        if not hits:
            raise TopcoatError(
                f"adapter.modules_to_save names {name!r}, which no module of this model has",
                where="adapter.modules_to_save",
                fix="name modules as the model does, such as lm_head or embed_tokens",
            )
        paths += [path for path in hits if path not in paths]
    for path in paths:
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
                raise TopcoatError(
                    f"{path} shares its weight with {', '.join(p for p in owners if p != path)}; training a copy of it "
                    "would separate them, and the saved model would say they are one",
                    where="adapter.modules_to_save",
                    fix="leave tied modules out of modules_to_save; the linears in the blocks can learn the task",
                )


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`; returns what stood there."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = owner.get_submodule(name)
    setattr(owner, name, module)
    return before


def _generator(seed: int, path: str) -> torch.Generator:
    """Random numbers for one module: a function of the seed and its path, not of the order of modules."""
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
