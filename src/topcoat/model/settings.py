"""Settings of the base model: where it lies, how its frozen weights are stored, where it computes. No torch here."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from topcoat.config import Config
from topcoat.quant.settings import Quantization

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME, as model hubs name a model."""


class ModelSettings(Config):
    """The base model of a run."""

    path: str = Field(min_length=1)
    """A directory in Hugging Face layout, a .gguf file, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct.
    A local path wins over a hub id of the same spelling."""
    quantization: Quantization | None = None
    """How the frozen linears are stored. null keeps them dense in the compute dtype."""
    compute_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Dtype of activations and products. auto is bf16 where the device computes it natively, else fp32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu)$")
    """auto takes the first GPU if there is one, else the CPU."""
    attention: Literal["auto", "topcoat", "sdpa", "eager"] = "auto"
    """Attention implementation. topcoat keeps packed documents apart and skips padding; eager is the reference."""
    chat_template: str | None = None
    """A file with a Jinja chat template. null takes the tokenizer's own, or ChatML where it has none."""
    revision: str | None = None
    """Commit or tag, for a hub id only."""
