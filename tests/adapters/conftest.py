"""Tiny bases for adapters: loaded in any format, or transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from topcoat.adapters.attach import Adapters
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import DenseConfig, Int8Config, IntConfig, Nf4Config

IDS = torch.arange(3, 40)[None] % 300

QUANTIZATIONS = {
    "fp32": DenseConfig(format="fp32"),
    "bf16": DenseConfig(format="bf16"),
    "nf4": Nf4Config(),
    "int8": Int8Config(),
    "int4": IntConfig(),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_type -> the directory of a tiny model, written once."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(model_type: str = "llama", seed: int = 0) -> Path:
        path = root / f"{model_type}-{seed}"
        return path if path.exists() else save_tiny(path, model_type, seed)

    return folder


@pytest.fixture(scope="session")
def load(folder_of: Callable[..., Path]) -> Callable[..., Base]:
    """(model_type, format, compute_dtype) -> a fresh base."""

    def make(model_type: str = "llama", format: str = "fp32", compute_dtype: str = "fp32", seed: int = 0) -> Base:
        path = str(folder_of(model_type, seed))
        settings = ModelSettings(path=path, quantization=QUANTIZATIONS[format], compute_dtype=compute_dtype)
        return load_model(settings.model_copy(update={"device": "cpu"}))

    return make


@pytest.fixture(scope="session")
def from_transformers(folder_of: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    """model_type -> the same tiny model as transformers loads it."""

    def make(model_type: str = "llama") -> PreTrainedModel:
        folder = folder_of(model_type)
        capped = model_type == "gemma2"  # transformers 5.17 leaves out the soft cap without a word where it may choose
        attention = "eager" if capped else None
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def logits() -> Callable[[nn.Module], Tensor]:
    """A model's logits on a fixed prompt."""

    def compute(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(IDS, use_cache=False).logits

    return compute


@pytest.fixture(scope="session")
def train_a_little() -> Callable[[Adapters], None]:
    """Stands in for training: no factor is zero any more, and copies have moved."""

    def disturb(adapters: Adapters) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    return disturb
