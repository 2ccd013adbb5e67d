"""An adapter as the plain LoRA that computes the same, for readers that know LoRA alone.

    s B A  ->  A' = A,  B' = s B

Readers disagree about everything but the factors: vLLM ignores `rank_pattern` and `alpha_pattern`, llama.cpp's
converter ignores rsLoRA's square root, and llama.cpp has one alpha for all. So every scale is 1 (the method's own is in
the factors), and `pad` fills every linear up to the largest rank with zeros, so that one r and one lora_alpha hold
everywhere. Without it, ranks that differ stand in `rank_pattern`, and `alpha_pattern` equals it.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import LoraConfig, TargetedConfig, TokenRowsConfig
from topcoat.errors import TopcoatError

Factors = tuple[Tensor, Tensor]
"""A (R, I) and B (O, R)."""


@torch.no_grad()
def factors_of(layer: Adapter) -> Factors | None:
    """The factors of the LoRA with scale 1 that computes what `layer` does; None where there is none."""
    if type(layer) is Lora:
        stored = layer.stored()  # with what a start such as PiSSA's took, twice the rank
        return stored["lora_A.weight"].detach(), layer.scale * stored["lora_B.weight"].detach()
    return layer.as_lora()


def is_lora(adapters: Adapters) -> bool:
    """Whether some LoRA computes what `adapters` do."""
    return bool(adapters.layers) and all(factors_of(layer) is not None for layer in adapters.layers.values())


def require_factors(adapters: Adapters, target: str | None = None) -> dict[str, Factors]:
    """Path -> factors of every adapted linear, to be written for `target`, a value of `topcoat export --to`, if any.

    Raises TopcoatError for a method that is no LoRA.
    """
    adapters.require_weights("LoRA" if target is None else f"LoRA for {target}")
    found: dict[str, Factors] = {}
    for path, layer in adapters.layers.items():
        pair = factors_of(layer)
        if pair is None:
            merged = "topcoat merge writes a plain model that any program reads"
            raise TopcoatError(
                f"{path} is adapted by {adapters.config.method}, which no LoRA computes",
                where="adapter.method" if target is None else f"--to {target}",
                fix=f"merge it: {merged}" if target is None else f"merge it: --to gguf, or {merged}",
            )
        found[path] = pair
    return found


def as_lora(adapters: Adapters, *, pad: bool = False) -> Adapters:
    """The LoRA equal to `adapters`, standing on the same model and ready for `save_adapter`.

    The layers are new, and those in the model stay; without `pad` a plain LoRA comes back as it is. Raises TopcoatError
    for a method that is no LoRA.
    """
    config = adapters.config
    adapters.require_weights("LoRA")
    if not pad and adapters.layers and all(type(layer) is Lora for layer in adapters.layers.values()):
        return adapters
    assert isinstance(config, TargetedConfig)
    found = require_factors(adapters)
    least = max(len(A) for A, _ in found.values()) if pad else 1
    filled = {path: _filled(A, B, least) for path, (A, B) in found.items()}
    ranks = {path: len(A) for path, (A, _) in filled.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    placed = {name: getattr(config, name) for name in TargetedConfig.model_fields if name != "method"}
    if isinstance(config, TokenRowsConfig):
        placed["trainable_token_indices"] = config.trainable_token_indices
    common = LoraConfig(**placed, r=usual, lora_alpha=float(usual))
    layers = {}
    for path, (A, B) in filled.items():
        own = common.model_copy(update={"r": ranks[path], "lora_alpha": float(ranks[path])})
        layer = layers[path] = Lora(adapters.layers[path].base, own)
        layer.take(A, B)
    made = Adapters(adapters.model, common, dict(layers), adapters.copies, adapters.rows, adapters.tied)
    made.only_on = adapters.only_on
    return made


@torch.no_grad()
def _filled(A: Tensor, B: Tensor, r: int) -> Factors:
    """A (K, I) and B (O, K) with zeros up to rank r."""
    missing = max(0, r - len(A))
    return torch.cat((A, A.new_zeros(missing, A.shape[1]))), torch.cat((B, B.new_zeros(len(B), missing)), 1)
