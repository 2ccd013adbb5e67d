"""Prefix tuning: n learned keys and values in front of those of the text, in every layer.

    attention of layer l:  softmax(q [P_K^l; K]^T) [P_V^l; V]          P (n, layers * 2 * kv heads * head width)

    prefix_tuning  P = W_2 tanh(W_1 E + b_1) + b_2 while it trains (prefix_projection), or P itself
    p_tuning_v2    P itself: a prefix in every layer, without the network

PEFT's `PREFIX_TUNING`; a file holds P alone. The text's positions start at n and no rotation is applied to P. Keys that
are zero still take part in every softmax, so no start of a prefix leaves the base's answers as they are. In a layer
with a sliding window the prefix slides out of it like any token, as in PEFT.

The prefix stands in n slots before each document (`prompt_layout.py`), where each layer's own keys and values are
replaced on their way to the cache. That is the same in every architecture whose attention asks a cache for them.

Papers: Li and Liang 2021, arXiv:2101.00190; Liu et al. 2021, arXiv:2110.07602 (P-tuning v2).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from topcoat.adapters.prompt_layout import Layout
from topcoat.adapters.prompt_tuning import mlp, started
from topcoat.adapters.settings import PrefixTuningConfig, PTuningV2Config
from topcoat.adapters.start import Start
from topcoat.adapters.virtual_tokens import NAME, VirtualTokens, by_name, decoder_of
from topcoat.errors import TopcoatError

CACHES = ("past_key_values", "layer_past")
"""What attention modules of transformers call the cache they are given."""


@dataclass(frozen=True)
class Heads:
    """Keys and values of a model: L layers of G heads of width K."""

    layers: int
    heads: int
    width: int

    @property
    def numbers(self) -> int:
        """Of one virtual token in one of keys or values."""
        return self.heads * self.width

    @classmethod
    def of(cls, model: PreTrainedModel) -> Heads:
        """From the model's config, as PEFT reads it. Raises TopcoatError for one without attention."""
        config: Any = model.config
        if not getattr(config, "num_attention_heads", None):
            raise _no_place(f"{type(model).__name__} has no attention")
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, heads, width)


class Prefix(VirtualTokens):
    """Virtual tokens as keys and values of every layer."""

    def __init__(
        self,
        heads: Heads,
        config: PrefixTuningConfig | PTuningV2Config,
        embedding: Tensor,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, embedding, encoder)
        self.heads = heads
        self._now: _Now | None = None

    def install(self, model: PreTrainedModel) -> None:
        """As every kind, and on each layer's attention. Raises TopcoatError for layers without keys and values."""
        attentions = _attentions(decoder_of(model))
        if len(attentions) != self.heads.layers:
            raise _no_place(f"{len(attentions)} of its {self.heads.layers} layers keep keys and values in a cache")
        super().install(model)
        for layer, (attention, name) in enumerate(attentions):
            hook = _Hook(self, layer, inspect.signature(attention.forward), name)
            self.handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))

    def inputs(self, values: Tensor, width: int) -> Tensor:
        """Nothing: whatever stands there, its keys and values are replaced and its outputs dropped."""
        return values.new_zeros(self.count, width)

    def entered(self, layout: Layout | None, values: Tensor | None) -> None:
        """The keys and values of this forward, if there are any."""
        self._now = None
        if layout is None or values is None:
            return
        by_layer = values.view(self.count, self.heads.layers, 2, self.heads.heads, self.heads.width)
        self._now = _Now(layout, by_layer)

    def left(self) -> None:
        """Every layer must have taken its part. While gradients are computed it stays at hand: layers may run again."""
        assert self._now is not None
        missed = sorted(set(range(self.heads.layers)) - self._now.taken)
        if not torch.is_grad_enabled():
            self._now = None
        if missed:
            raise _no_place(f"its layers {missed} asked no cache for keys and values")


@dataclass
class _Now:
    """One forward's prefix."""

    layout: Layout
    by_layer: Tensor
    """(n, L, 2, G, K)."""

    def __post_init__(self) -> None:
        self.taken: set[int] = set()


@dataclass(frozen=True)
class _Hook:
    """Before the attention of one layer: a cache that puts the prefix in."""

    prefix: Prefix
    layer: int
    signature: inspect.Signature
    name: str
    """Of the cache among its arguments."""

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = self.prefix._now
        if now is None:
            return None
        given = by_name(self.signature, args, kwargs)
        return (), given | {self.name: _Replacing(given.get(self.name), now, self.layer)}


class _Replacing(DynamicCache):
    """A layer's keys and values on their way to `kept`, those at virtual tokens replaced."""

    def __init__(self, kept: Cache | None, now: _Now, layer: int) -> None:
        super().__init__()
        self.kept, self.now, self.layer = kept, now, layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states and value_states (B, G, W, K) -> what attention reads."""
        keys, values = self._with_prefix(key_states, 0), self._with_prefix(value_states, 1)
        self.now.taken.add(self.layer)
        return (keys, values) if self.kept is None else self.kept.update(keys, values, *args, **kwargs)

    def get_seq_length(self, *args: Any) -> int:
        """Of what is kept."""
        return 0 if self.kept is None else int(self.kept.get_seq_length(*args))

    def _with_prefix(self, states: Tensor, which: int) -> Tensor:
        layout, prefix = self.now.layout, self.now.by_layer[:, self.layer, which]  # (n, G, K)
        B, G, W, K = states.shape
        if prefix.shape[1:] != (G, K):
            made = " x ".join(map(str, prefix.shape[1:]))
            raise _no_place(f"layer {self.layer} has {G} x {K} keys or values a token, the others {made}")
        flat = layout.put(states.transpose(1, 2).flatten(0, 1), prefix)  # (B * W, G, K)
        return flat.view(B, W, G, K).transpose(1, 2)


def _no_place(why: str) -> TopcoatError:
    return TopcoatError(
        f"a prefix does not fit this model: {why}",
        where="adapter.method",
        fix="write method: prompt_tuning or p_tuning, which stand before the text, or method: lora",
    )


def _attentions(decoder: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every innermost module of `decoder` that is given a cache, and by which name, in the order of the layers."""
    takers: list[tuple[nn.Module, str]] = []
    for module in decoder.modules():
        name = _cache_name(module)
        inside = (child for child in module.modules() if child is not module)
        if name and not any(_cache_name(child) for child in inside):
            takers.append((module, name))
    return takers


def _cache_name(module: nn.Module) -> str | None:
    names = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in names), None)


def prefix_tuning(model: PreTrainedModel, config: PrefixTuningConfig, start: Start | None) -> Prefix:
    """Keys and values, or what they come from; without a `start` the keys and values alone, at zero."""
    heads = Heads.of(model)
    if start is None or not config.prefix_projection:
        return _plain(heads, config, start)
    generator = start.generator(NAME)
    hidden = config.encoder_hidden_size or heads.numbers
    widths = [heads.numbers, hidden, 2 * heads.layers * heads.numbers]
    encoder = started(lambda: mlp(widths, nn.Tanh), generator)
    embedding = torch.randn(config.num_virtual_tokens, heads.numbers, generator=generator)
    return Prefix(heads, config, embedding, encoder)


def p_tuning_v2(model: PreTrainedModel, config: PTuningV2Config, start: Start | None) -> Prefix:
    """Keys and values; without a `start` at zero."""
    return _plain(Heads.of(model), config, start)


def _plain(heads: Heads, config: PrefixTuningConfig | PTuningV2Config, start: Start | None) -> Prefix:
    shape = (config.num_virtual_tokens, 2 * heads.layers * heads.numbers)
    if start is None or config.init_weights == "zero":
        return Prefix(heads, config, torch.zeros(shape))
    return Prefix(heads, config, torch.randn(shape, generator=start.generator(NAME)))
