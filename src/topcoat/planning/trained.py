"""Numbers of each tensor that a method trains on one linear (O, I), from its settings alone.

    lora  A (r, I) and B (O, r); only B with freeze_lora_a
    dora  those, and a length for each row (O,)
    qalora  A (r, I / group) and B (O, r)
    adalora  A (init_r, I), E (init_r,) and B (O, init_r)
    iec   LoRA's, and two numbers
    ia3   a factor for each output (O,), or for each input (I,) of the feed-forward modules
    vera  d (r,) and b (O,)
    miss  one matrix (r, O)

Methods that add tokens train those instead, or what makes them: `prompt_sizes`. What a method holds beside, in float32
and without gradient or moments:

    LoRA-FA        A (r, I)
    PiSSA, OLoRA   what the start took of W, A0 (r, I) and B0 (O, r): products, copies and files have twice the rank
    DoRA           the squared length of each row (O,)
    VeRA           A (r, largest I) and B (largest O, r), once for all linears
    AdaLoRA        two importance scores for each number that trains, while it trains

Tests hold every method to what it attaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from topcoat.adapters.settings import (
    AdaloraConfig,
    AdapterConfig,
    DoraConfig,
    Ia3Config,
    IecConfig,
    LoraConfig,
    MissConfig,
    PrefixTuningConfig,
    PromptConfig,
    PTuningConfig,
    QaloraConfig,
    TargetedConfig,
    VeraConfig,
)
from topcoat.errors import TopcoatError


def _lora(config: LoraConfig, path: str, out: int, inner: int) -> list[int]:
    r = config.at(path).r
    return [r * out] if config.freeze_lora_a else [r * inner, r * out]


def _dora(config: DoraConfig, path: str, out: int, inner: int) -> list[int]:
    return [*_lora(config, path, out, inner), out]


def _qalora(config: QaloraConfig, path: str, out: int, inner: int) -> list[int]:
    return _lora(config, path, out, inner // config.qalora_group_size)


def _adalora(config: AdaloraConfig, path: str, out: int, inner: int) -> list[int]:
    return [config.init_r * inner, config.init_r, config.init_r * out]


def _iec(config: IecConfig, path: str, out: int, inner: int) -> list[int]:
    return [*_lora(config, path, out, inner), 1, 1]


def _ia3(config: Ia3Config, path: str, out: int, inner: int) -> list[int]:
    return [inner if path.endswith(tuple(config.feedforward_modules)) else out]


def _vera(config: VeraConfig, path: str, out: int, inner: int) -> list[int]:
    return [config.r, out]


def _miss(config: MissConfig, path: str, out: int, inner: int) -> list[int]:
    return [config.r * out]


SIZES: dict[str, Callable[..., list[int]]] = {
    "lora": _lora,
    "dora": _dora,
    "qalora": _qalora,
    "adalora": _adalora,
    "iec": _iec,
    "ia3": _ia3,
    "vera": _vera,
    "miss": _miss,
}
"""Method -> (its settings, path, O, I) -> numbers of each tensor it trains there."""


def held_numbers(config: AdapterConfig, path: str, out_features: int, in_features: int) -> int:
    """Numbers in float32 of the adapter at `path` that do not train and stand in the model all the same."""
    if not isinstance(config, LoraConfig):
        return 0
    r = config.at(path).r
    inner = in_features // config.qalora_group_size if isinstance(config, QaloraConfig) else in_features
    held = r * inner if config.freeze_lora_a else 0
    held += r * (in_features + out_features) if starts_from_weight(config) else 0
    return held + (out_features if isinstance(config, DoraConfig) else 0)


def shared_numbers(config: AdapterConfig, linears: Iterable[tuple[int, int]]) -> int:
    """Numbers in float32 that the adapters on `linears`, each (O, I), have in common."""
    shapes = list(linears)
    if not isinstance(config, VeraConfig) or not shapes:
        return 0
    return config.r * (max(out for out, _ in shapes) + max(inner for _, inner in shapes))


def scored_numbers(config: AdapterConfig, path: str, out_features: int, in_features: int) -> int:
    """Numbers at `path` that are scored in every step (`training/ranks.py`)."""
    return sum(_adalora(config, path, out_features, in_features)) if isinstance(config, AdaloraConfig) else 0


def kept_numbers(config: AdapterConfig, path: str, out_features: int, in_features: int) -> int:
    """Numbers that the layer at `path` keeps of one token for its backward, beside what the linear itself keeps.

    DoRA keeps W x + B A x and its product with the magnitudes' change, IA3 what its vector scales.
    """
    if isinstance(config, DoraConfig):
        return 2 * out_features
    return sum(_ia3(config, path, out_features, in_features)) if isinstance(config, Ia3Config) else 0


def starts_from_weight(config: AdapterConfig) -> bool:
    """Whether the start takes part of W, which the layer then holds and subtracts again."""
    if not isinstance(config, LoraConfig):
        return False
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(("pissa", "olora"))


def makes_file_tensors(config: AdapterConfig) -> bool:
    """Whether the tensors of the adapter's file are made for it, all at once, and not those that compute."""
    return isinstance(config, AdaloraConfig) or starts_from_weight(config)


def fused_rank(config: AdapterConfig, path: str) -> int | None:
    """The rank at `path` of a method that the hand-written blocks compute, what its start took included; None for one
    that they do not."""
    if isinstance(config, AdaloraConfig):
        return config.init_r
    if isinstance(config, IecConfig) and config.lora_dropout:
        return None  # its short path reads what is not dropped
    if not isinstance(config, LoraConfig) or isinstance(config, DoraConfig):
        return None
    return config.at(path).r * (2 if starts_from_weight(config) else 1)


def trained_sizes(config: TargetedConfig, path: str, out_features: int, in_features: int) -> list[int]:
    """Numbers of each tensor that `config` trains at `path`. Raises TopcoatError for a method that is not counted."""
    if config.method not in SIZES:
        raise TopcoatError(
            f"adapter.method {config.method} is not counted by plans",
            "adapter.method",
            f"plan with one of {', '.join(SIZES)}",
        )
    return SIZES[config.method](config, path, out_features, in_features)


def prompt_sizes(config: PromptConfig, layers: int, width: int, key_value: int) -> list[int]:
    """Numbers of each tensor that virtual tokens train, on a model of so many layers and widths."""
    n = config.num_virtual_tokens
    if isinstance(config, PTuningConfig):
        inner = config.encoder_hidden_size or width
        if config.encoder_reparameterization_type == "LSTM":
            return [n * width, *_lstm(width, inner, config.encoder_num_layers), *_mlp(2 * inner, 2 * inner, width)]
        return [n * width, *_mlp(width, inner, inner, width)]
    if config.method == "prompt_tuning":
        return [n * width]
    if isinstance(config, PrefixTuningConfig) and config.prefix_projection:
        return [n * key_value, *_mlp(key_value, config.encoder_hidden_size or key_value, 2 * layers * key_value)]
    return [n * 2 * layers * key_value]


def _mlp(*widths: int) -> list[int]:
    return [n for inner, out in pairwise(widths) for n in (inner * out, out)]


def _lstm(width: int, hidden: int, layers: int) -> list[int]:
    """Of each layer and direction: four gates' weights of its input and of its state, and two biases."""
    inputs = [width] + [2 * hidden] * (layers - 1)
    return [n for inner in inputs for n in (4 * hidden * inner, 4 * hidden * hidden, 4 * hidden, 4 * hidden) * 2]
