"""Settings of the adapters: one type per method, so `adapter: {method: lora}` accepts LoRA's keys and no others.

No torch is imported here: a recipe is checked before torch is. The methods stand in the files of the same name; the
table `METHODS` is in `adapters/methods.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from topcoat.config import Config


class AdapterConfig(Config):
    """What every method's settings share: the name that picks it."""

    method: str


class LoraConfig(AdapterConfig):
    """LoRA (arXiv:2106.09685): y = W x + scale * B A x with W frozen."""

    method: Literal["lora"] = "lora"
    """Low-rank update beside each frozen linear."""
    r: int = Field(16, ge=1)
    """Inner width of the update. Adds r * (in_features + out_features) parameters to each layer."""
    lora_alpha: float = Field(32.0, gt=0)
    """Strength of the update: scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed while training. Slows the step; 0.05 to 0.1 helps only on small data."""
    use_rslora: bool = False
    """Divide by sqrt(r), rsLoRA (arXiv:2312.03732): keeps the update's size steady as r grows."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Linears to adapt: "all-linear" (all in the blocks, not the head), names such as q_proj, or regular
    expressions over the whole path such as `.*layers\\.[0-9]\\.mlp\\..*`."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules trained whole beside the adapter (a full fp32 copy each), such as lm_head of an untied model."""


class FullConfig(AdapterConfig):
    """Full fine-tuning: every parameter trains, in fp32 masters with computation in the compute dtype."""

    method: Literal["full"] = "full"
    """Costs about 16 bytes a parameter: master, gradient and two optimizer moments, 4 bytes each."""


Adapter = Annotated[LoraConfig | FullConfig, Field(discriminator="method")]
