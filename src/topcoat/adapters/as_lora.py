"""An adapter of another method as the plain LoRA that computes the same, for readers that know LoRA alone.

Ranks differ by linear: `rank_pattern` says them, and `alpha_pattern` equals it, so that every scale is 1 (the method's
own is in A). vLLM ignores patterns and llama.cpp has one alpha for all; `pad` fills every linear up to the largest rank
with zeros, so that one r and one lora_alpha hold everywhere.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import LoraConfig, TargetedConfig
from topcoat.errors import TopcoatError


@torch.no_grad()
def as_lora(adapters: Adapters, *, pad: bool = False) -> Adapters:
    """The LoRA equal to `adapters`, standing on the same model and ready for `save_adapter`.

    The layers are new, and those in the model stay; a plain LoRA comes back as it is. Raises TopcoatError for a method
    that is no LoRA.
    """
    config = adapters.config
    adapters.require_weights("LoRA")
    if all(type(layer) is Lora for layer in adapters.layers.values()) and adapters.layers:
        return adapters
    assert isinstance(config, TargetedConfig)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in adapters.layers.items():
        pair = layer.as_lora()
        if pair is None:
            raise TopcoatError(
                f"{path} is adapted by {config.method}, which no LoRA computes",
                where="adapter.method",
                fix="merge it: topcoat merge writes a plain model that any program reads",
            )
        found[path] = pair
    least = max(len(A) for A, _ in found.values()) if pad else 1
    filled = {path: _filled(A, B, least) for path, (A, B) in found.items()}
    ranks = {path: len(A) for path, (A, _) in filled.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    placed = {name: getattr(config, name) for name in TargetedConfig.model_fields if name != "method"}
    if isinstance(config, LoraConfig):
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


def _filled(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (K, I) and B (O, K) with zeros up to rank r."""
    missing = max(0, r - len(A))
    return torch.cat((A, A.new_zeros(missing, A.shape[1]))), torch.cat((B, B.new_zeros(len(B), missing)), 1)
