"""adapter_config.json of the methods that add tokens: PEFT's PROMPT_TUNING, P_TUNING and PREFIX_TUNING.

A file holds the tokens as they are used, so PEFT reads it without the network that made them, and so does this reader:
`encoder_*` and `prefix_projection` then say how they were trained. Keys and meanings: PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from topcoat.adapters.attach import Adapters
from topcoat.adapters.prefix_tuning import Prefix
from topcoat.adapters.settings import (
    PrefixTuningConfig,
    PromptConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
)
from topcoat.adapters.virtual_tokens import language_model, width_of

Values = dict[str, Any]


def _shapes(adapters: Adapters) -> Values:
    """What PEFT makes the tokens from before it reads them."""
    assert isinstance(adapters.config, PromptConfig)
    model = language_model(adapters.model)
    heads, width = model.config.num_attention_heads, width_of(model)
    if isinstance(adapters.prompt, Prefix):  # PEFT writes those of the keys
        heads, width = adapters.prompt.heads.heads, adapters.prompt.heads.numbers
    return {
        "num_virtual_tokens": adapters.config.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": heads,
        "token_dim": width,
    }


def _write_prompt_tuning(adapters: Adapters) -> Values:
    config = adapters.config
    assert isinstance(config, PromptTuningConfig)  # a text asks PEFT for a tokenizer, which reading does not need
    return _shapes(adapters) | {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}


def _read_prompt_tuning(values: Values) -> tuple[type[PromptConfig], Values]:
    return PromptTuningConfig, _count(values)


_NETWORK = ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout")


def _write_p_tuning(adapters: Adapters) -> Values:
    config, shapes = adapters.config, _shapes(adapters)
    network = {key: getattr(config, key) for key in _NETWORK}
    network["encoder_hidden_size"] = network["encoder_hidden_size"] or shapes["token_dim"]
    return shapes | network


def _read_p_tuning(values: Values) -> tuple[type[PromptConfig], Values]:
    network = {key: values[key] for key in _NETWORK if values.get(key) is not None}
    if network.get("encoder_reparameterization_type", "MLP") == "MLP":  # PEFT passes over what is the LSTM's
        network = {key: network[key] for key in _NETWORK[:2] if key in network}
    return PTuningConfig, _count(values) | network


def _write_prefix(adapters: Adapters) -> Values:
    config, shapes = adapters.config, _shapes(adapters)
    projected = isinstance(config, PrefixTuningConfig) and config.prefix_projection
    hidden = config.encoder_hidden_size if isinstance(config, PrefixTuningConfig) else None
    return shapes | {"prefix_projection": projected, "encoder_hidden_size": hidden or shapes["token_dim"]}


def _read_prefix(values: Values) -> tuple[type[PromptConfig], Values]:
    if not values.get("prefix_projection"):
        return PTuningV2Config, _count(values)
    return PrefixTuningConfig, _count(values) | {"encoder_hidden_size": values.get("encoder_hidden_size")}


def _count(values: Values) -> Values:
    return {"num_virtual_tokens": values["num_virtual_tokens"]}


Write = Callable[[Adapters], Values]
Read = Callable[[Values], tuple[type[PromptConfig], Values]]

PROMPT_KINDS: dict[str, tuple[Write, Read]] = {
    "PROMPT_TUNING": (_write_prompt_tuning, _read_prompt_tuning),
    "P_TUNING": (_write_p_tuning, _read_p_tuning),
    "PREFIX_TUNING": (_write_prefix, _read_prefix),
}
"""How what is PEFT's of that name is written and read."""

PROMPT_NEEDS = ("num_virtual_tokens",)
PROMPT_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "num_transformer_submodules": (1, None),
}
"""Settings that change what PEFT computes and that this reader does not know."""

PROMPT_WRITTEN_AS = {
    "prompt_tuning": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
    "prefix_tuning": "PREFIX_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
}
"""Our method -> PEFT's type."""
