"""An adapter as the plain LoRA that computes the same, one pair of factors a linear with no scale left beside them.

    s B A  ->  A' = A,  B' = s B

Readers disagree about everything but the factors: vLLM ignores `rank_pattern` and `alpha_pattern`, llama.cpp's
converter ignores rsLoRA's square root, and llama.cpp has one alpha for all. With scale 1 and, where one r must hold for
all, factors filled up with zeros, every one of them computes what was trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import LoraConfig, TargetedConfig
from topcoat.errors import TopcoatError

Factors = tuple[Tensor, Tensor]


@torch.no_grad()
def factors_of(layer: Adapter) -> Factors | None:
    """A (R, I) and B (O, R) of the LoRA with scale 1 that computes what `layer` does; None where there is none."""
    if type(layer) is Lora:
        stored = layer.stored()  # with what a start such as PiSSA's took, twice the rank
        return stored["lora_A.weight"].detach(), layer.scale * stored["lora_B.weight"].detach()
    return layer.as_lora()


def require_factors(adapters: Adapters, target: str) -> dict[str, Factors]:
    """Path -> factors, for all adapted linears. Raises TopcoatError for a method that is no LoRA."""
    adapters.require_weights(f"LoRA for {target}")
    found: dict[str, Factors] = {}
    for path, layer in adapters.layers.items():
        pair = factors_of(layer)
        if pair is None:
            raise TopcoatError(
                f"{path} is adapted by {adapters.config.method}, which no LoRA computes",
                where=f"--to {target}",
                fix="merge it into the model: --to gguf, or topcoat merge",
            )
        found[path] = pair
    return found


def of_one_rank(adapters: Adapters) -> Adapters | None:
    """`adapters` as a LoRA of one rank with scale 1 everywhere, on the same bases; None for a method that is no LoRA.

    The layers are new and stand in no model: they are to be written, and those in the model stay.
    """
    config = adapters.config
    pairs = {path: factors_of(layer) for path, layer in adapters.layers.items()}
    found = {path: pair for path, pair in pairs.items() if pair is not None}
    if not isinstance(config, TargetedConfig) or len(found) < len(pairs) or not found:
        return None
    r = max(1, *(len(A) for A, _ in found.values()))
    shared = {name: getattr(config, name) for name in TargetedConfig.model_fields if name != "method"}
    if isinstance(config, LoraConfig):
        shared["trainable_token_indices"] = config.trainable_token_indices
    common = LoraConfig(**shared, r=r, lora_alpha=float(r))
    layers: dict[str, Adapter] = {}
    for path, (A, B) in found.items():
        layer = Lora(adapters.layers[path].base, common)
        missing = r - len(A)
        layer.take(torch.cat((A, A.new_zeros(missing, A.shape[1]))), torch.cat((B, B.new_zeros(len(B), missing)), 1))
        layers[path] = layer
    made = Adapters(adapters.model, common, layers, adapters.copies, adapters.rows, adapters.tied)
    made.only_on = adapters.only_on
    return made
