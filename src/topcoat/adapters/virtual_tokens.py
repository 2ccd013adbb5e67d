"""Virtual tokens: learned vectors before every document, in place of a change to any weight.

    x_0 .. x_(t-1)  ->  v_0 .. v_(n-1) x_0 .. x_(t-1)        the n outputs at v are dropped again

A method is what the n vectors are: input embeddings (`prompt_tuning.py`) or keys and values of every layer
(`prefix_tuning.py`). Both may come out of a small network that trains with them and is left out of the saved file. Two
hooks on the decoder of this one model instance do the work, so training, evaluation and generation with a cache need
not know of it; switched off or taken away, the model computes its base bit for bit. Nothing here can be merged.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.adapters.prompt_layout import Layout, widen
from topcoat.adapters.settings import PromptConfig
from topcoat.errors import TopcoatError

NAME = "virtual_tokens"
"""The submodule's name on the model, and the first part of its parameters' names."""
STORED = "prompt_embeddings"
"""PEFT's name of the one tensor in a file."""


class VirtualTokens(nn.Module, ABC):
    """n vectors of width W, (n, W): trained themselves, or as the output of `encoder` on a trained input."""

    def __init__(self, config: PromptConfig, embedding: Tensor, encoder: nn.Module | None = None) -> None:
        """`embedding` (n, W), or (n, the encoder's input) with one; both train in float32."""
        super().__init__()
        self.config = config
        self.count = config.num_virtual_tokens
        self.embedding = nn.Parameter(embedding.float())
        self.encoder = encoder
        self.enabled = True
        """False computes the base alone, bit for bit."""
        self.handles: list[Any] = []

    def values(self) -> Tensor:
        """What is learned (n, W), and all that a file holds."""
        return self.embedding if self.encoder is None else self.encoder(self.embedding)

    def slots(self) -> dict[str, Tensor]:
        """What a file's tensor is read into."""
        return {STORED: self.embedding}

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """What a file holds: the values without dropout."""
        training = self.training
        self.eval()
        found = self.values()
        self.train(training)
        return {STORED: found}

    def install(self, model: PreTrainedModel) -> None:
        """Stand before the documents of every forward of `model` from now on."""
        decoder = decoder_of(model)
        self.embed = [model.get_input_embeddings()]  # in a list: no submodule, it is the base's
        self.signature = inspect.signature(decoder.forward)
        self.handles += [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, always_call=True),
        ]
        model.add_module(NAME, self)

    def remove(self, model: PreTrainedModel) -> None:
        """Leave `model` as it was before `install`."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        delattr(model, NAME)

    @abstractmethod
    def inputs(self, values: Tensor, width: int) -> Tensor:
        """The input embeddings (n, D) that stand at the virtual tokens, from the learned `values`."""

    def entered(self, layout: Layout | None, values: Tensor | None) -> None:
        """A forward begins, with the virtual tokens `values` at `layout`, or with none of them."""

    def left(self) -> None:
        """A forward with virtual tokens has ended."""

    def _before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._layout: Layout | None = None
        self.entered(None, None)
        if not self.enabled:
            return None
        given = by_name(self.signature, args, kwargs)
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:  # the virtual tokens are in it
            return (), given | self._beside_cache(given)
        tokens = given.pop("inputs_embeds", None)
        if tokens is None:
            tokens = self.embed[0](given["input_ids"])  # (B, T, D)
        given.pop("input_ids", None)
        layout, changes = widen(given, tokens, self.count)
        values = self.values()
        self._layout = layout
        self.entered(layout, values)
        return (), given | changes | {"inputs_embeds": layout.spread(tokens, self.inputs(values, tokens.shape[-1]))}

    def _beside_cache(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keywords of a later forward, whose cache holds the virtual tokens already."""
        changes: dict[str, Any] = {}
        if given.get("position_ids") is not None:
            changes["position_ids"] = given["position_ids"] + self.count
        mask = given.get("attention_mask")
        if mask is not None and mask.dim() == 2:  # zeros, then ones: where among them the new ones stand is the same
            changes["attention_mask"] = torch.cat((mask, mask.new_ones(mask.shape[0], self.count)), dim=1)
        return changes

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layout, self._layout = self._layout, None
        if layout is None or output is None:  # None: the forward has raised
            return None
        self.left()
        output.last_hidden_state = layout.gather(output.last_hidden_state)
        return output


def language_model(model: nn.Module) -> PreTrainedModel:
    """`model`, if it is one that virtual tokens can stand before. Raises TopcoatError if not."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        raise TopcoatError(
            f"{type(model).__name__} is no language model of transformers that virtual tokens could stand before",
            where="adapter.method",
            fix="use a causal language model of transformers, or method: lora",
        )
    return model


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that turns ids into hidden states."""
    decoder = model.base_model
    assert isinstance(decoder, nn.Module)
    return decoder


def width_of(model: PreTrainedModel) -> int:
    """D, the width of an input embedding."""
    width = model.get_input_embeddings().embedding_dim  # also that of a quantized one, which has no weight to look at
    assert isinstance(width, int)
    return width


def virtual_tokens(model: nn.Module) -> int:
    """How many positions the virtual tokens on `model` take beside those of the text; 0 where there are none."""
    return sum(module.count for module in model.children() if isinstance(module, VirtualTokens) and module.enabled)


def by_name(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call as keywords."""
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given
