"""Put adapters on a model, switch them off and on, take them off, and list exactly what trains.

    adapters = attach(model, LoraConfig(r=16))      # from here on, the only parameters that train
    with adapters.off(): ...                        # the base alone, bit for bit
    adapters.detach()                               # the model as it was

Only submodules of this one model instance are replaced. A linear that is not yet a `FrozenLinear` becomes one that
shares its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from topcoat.adapters.base import Adapter
from topcoat.adapters.loftq import stored_as
from topcoat.adapters.methods import METHODS
from topcoat.adapters.patterns import chosen
from topcoat.adapters.prompt_methods import PROMPTS
from topcoat.adapters.saved_modules import modules_to_save
from topcoat.adapters.settings import (
    AdapterConfig,
    FullConfig,
    LoraConfig,
    PromptConfig,
    TargetedConfig,
    TokenRowsConfig,
)
from topcoat.adapters.start import Start
from topcoat.adapters.targets import adaptable_linears
from topcoat.adapters.token_rows import DELTA, TiedRows, TrainedRows, find_embedding
from topcoat.adapters.trained_copy import TrainedCopy
from topcoat.adapters.virtual_tokens import NAME, VirtualTokens, language_model
from topcoat.errors import TopcoatError
from topcoat.quant.frozen import Frozen
from topcoat.quant.linear import FrozenLinear


@dataclass
class Adapters:
    """What `attach` put on `model`: the adapted linears and the modules trained whole, by path; or virtual tokens."""

    model: nn.Module
    config: AdapterConfig
    layers: dict[str, Adapter] = field(default_factory=dict)
    copies: dict[str, TrainedCopy] = field(default_factory=dict)
    rows: dict[str, TrainedRows] = field(default_factory=dict)
    """The embedding some rows of which train."""
    tied: dict[str, TrainedRows] = field(default_factory=dict)
    """The head that follows those rows."""
    prompt: VirtualTokens | None = None
    """The virtual tokens before every document; beside them there are `copies` at most."""
    replaced: dict[str, nn.Module] = field(default_factory=dict)
    trained_before: list[nn.Parameter] = field(default_factory=list)
    """Parameters that wanted gradients before `attach` froze them; `detach` lets them train again."""

    only_on: dict[str, str] = field(default_factory=dict)
    """Path -> the number format without which the adapter means nothing; empty for one that fits any."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by its name in the plain model: `<path>.lora_A`, or `<path>.weight` of a copy."""
        if isinstance(self.config, FullConfig):
            return dict(self.model.named_parameters())  # a tied weight appears once
        named: dict[str, nn.Parameter] = {}
        for path, layer in self.layers.items():
            named |= {f"{path}.{name}": p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
        for path, module in self.copies.items():
            named |= {f"{path}.{name}": p for name, p in module.copy.named_parameters()}
        if self.prompt is not None:
            named |= {f"{NAME}.{name}": p for name, p in self.prompt.named_parameters()}
        return named | {f"{path}.{DELTA}": module.rows for path, module in self.rows.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the parameters, and what stays as it was drawn at the start."""
        state: dict[str, Tensor] = dict(self.parameters())
        for path, layer in self.layers.items():
            state |= {f"{path}.{name}": tensor for name, tensor in layer.drawn().items()}
        return state | self.shared()

    def shared(self) -> dict[str, Tensor]:
        """What all layers have in common."""
        return next((layer.shared() for layer in self.layers.values()), {})

    def rate_factor(self, name: str) -> float:
        """What the learning rate of the parameter `name` is multiplied with."""
        path, _, own = name.rpartition(".")
        return self.layers[path].rate_factor(own) if path in self.layers else 1.0

    def _switchable(self) -> list[Adapter | TrainedCopy | TrainedRows | VirtualTokens]:
        prompt = [] if self.prompt is None else [self.prompt]
        return [*self.layers.values(), *self.copies.values(), *self.rows.values(), *prompt]

    def require_weights(self, what: str) -> None:
        """Raises TopcoatError where there is no change of weights that `what` (a merge, an export) could be made of."""
        if self.prompt is not None:
            raise no_weights(self.config.method, what)

    def count(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model computes as if nothing were attached; afterwards as it did before."""
        modules = self._switchable()
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
        for module in self._switchable():
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
        if self.prompt is not None:
            self.prompt.remove(language_model(self.model))
            self.prompt = None
        self.layers, self.copies, self.rows, self.tied, self.replaced, self.trained_before = {}, {}, {}, {}, {}, []
        return self.model


def attach(
    model: nn.Module,
    config: AdapterConfig,
    seed: int = 42,
    *,
    originals: Callable[[str], Tensor] | None = None,
    rows: Iterable[Tensor] = (),
    tokenize: Callable[[str], list[int]] | None = None,
) -> Adapters:
    """Freeze `model` and put `config`'s method on the linears it names; the start follows from `seed` and the path.

    `originals` (path -> the unrounded weight) is what init_lora_weights: loftq starts from; `rows`, each (1, T) token
    ids, are what eva does; `tokenize` (text -> token ids) is what prompt_tuning_init: TEXT needs.

    Raises TopcoatError when a pattern matches nothing, a rank is above its matrix, or something is attached already;
    the model is then untouched.
    """
    return place(model, config, Start(seed, originals, rows, model, adaptable_linears(model), tokenize))


def place(model: nn.Module, config: AdapterConfig, start: Start | None) -> Adapters:
    """As `attach`, from any `start`; without one the parameters wait for the tensors of a file."""
    if any(isinstance(module, Adapter | TrainedCopy | TrainedRows | VirtualTokens) for module in model.modules()):
        raise TopcoatError(
            "the model already carries an adapter",
            fix="call detach() on it first, or load the base model again",
        )
    adapters = Adapters(model, config, trained_before=[p for p in model.parameters() if p.requires_grad])
    if isinstance(config, FullConfig):
        _train_everything(adapters)
        return adapters
    if isinstance(config, PromptConfig):
        saved = modules_to_save(model, config.modules_to_save, [], from_file=start is None)
        _add_tokens(adapters, config, start)
        _train_whole(adapters, saved)
        return adapters
    if not isinstance(config, TargetedConfig):
        raise TypeError(f"{type(config).__name__} says nothing of where it goes")
    linears = adaptable_linears(model)
    targets = chosen(list(linears), config)
    saved = modules_to_save(model, config.modules_to_save, targets, from_file=start is None)
    tokens = config.trainable_token_indices if isinstance(config, TokenRowsConfig) else []
    embedding = find_embedding(model, tokens, saved) if tokens else None
    layers = METHODS[config.method].build({path: frozen(linears[path]) for path in targets}, config, start)
    model.requires_grad_(False)
    for path, layer in layers.items():
        layer.train(model.training)
        adapters.layers[path] = layer
        adapters.replaced[path] = _replace(model, path, layer)
    if isinstance(config, LoraConfig) and config.init_lora_weights == "loftq":
        adapters.only_on = {path: stored_as(layer.base) for path, layer in layers.items()}
    _train_whole(adapters, saved)
    if embedding is not None:
        _train_rows(adapters, *embedding)
    return adapters


def _train_whole(adapters: Adapters, paths: list[str]) -> None:
    """The modules at `paths` train as copies of their own."""
    for path in paths:
        module = TrainedCopy(adapters.model.get_submodule(path))
        adapters.copies[path] = module
        adapters.replaced[path] = _replace(adapters.model, path, module)


def _add_tokens(adapters: Adapters, config: PromptConfig, start: Start | None) -> None:
    """Virtual tokens before every document of every forward."""
    model = language_model(adapters.model)
    prompt = PROMPTS[config.method](model, config, start)
    prompt.to(model.device).train(model.training)
    prompt.install(model)
    for parameter in adapters.trained_before:
        parameter.requires_grad_(False)
    adapters.prompt = prompt


def no_weights(method: str, what: str) -> TopcoatError:
    """What to say where `what` needs a change of weights, and `method` adds tokens."""
    return TopcoatError(
        f"{method} adds virtual tokens before the text and changes no weight, so there is no {what}",
        where="adapter.method",
        fix="use the adapter folder as it is: topcoat chat and PEFT read it; or train with method: lora",
    )


def _train_rows(adapters: Adapters, path: str, tied: str | None) -> None:
    """Chosen rows of the embedding at `path` train, and the head at `tied` follows them."""
    assert isinstance(adapters.config, TokenRowsConfig)
    model = adapters.model
    rows = TrainedRows(model.get_submodule(path), adapters.config.trainable_token_indices)
    if tied is not None:
        adapters.replaced[tied] = _replace(model, tied, TiedRows(model.get_submodule(tied), rows))
        adapters.tied[tied] = rows
    adapters.rows[path] = rows
    adapters.replaced[path] = _replace(model, path, rows)


def frozen(linear: nn.Module) -> FrozenLinear:
    """`linear` as a FrozenLinear that shares its weight; unchanged if it is one."""
    if isinstance(linear, FrozenLinear):
        return linear
    assert isinstance(linear, nn.Linear)
    return FrozenLinear.share(linear)


def _train_everything(adapters: Adapters) -> None:
    """Every parameter becomes a trainable float32 master; dense frozen linears become ordinary ones again."""
    model = adapters.model
    stored = {path: module for path, module in model.named_modules() if isinstance(module, Frozen)}
    for path, module in stored.items():
        if module.format.quantized:
            raise TopcoatError(
                f"full fine-tuning needs floating point weights, and {path} is stored as {module.weight_state.format}",
                where="model.quantization",
                fix="remove model.quantization, or use method: lora",
            )
    weights: dict[int, nn.Parameter] = {}
    for path, module in stored.items():
        key = next(iter(module.weight_state.tensors.values())).data_ptr()  # a tied head and embedding share theirs
        if key not in weights:
            weights[key] = nn.Parameter(module.dense_weight(torch.float32))
        adapters.replaced[path] = _replace(model, path, _plain(module, weights[key]))
    model.to(torch.float32).requires_grad_(True)


def _plain(module: Frozen, weight: nn.Parameter) -> nn.Module:
    """The ordinary linear or embedding of `weight`, (O, I) or (V, D), that computes what `module` does."""
    if not isinstance(module, FrozenLinear):
        embedding = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
        embedding.weight = weight
        return embedding
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = weight
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.float())
    return linear


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`; returns what stood there."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = owner.get_submodule(name)
    setattr(owner, name, module)
    return before
