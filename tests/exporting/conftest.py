"""A trained adapter on a base of any family and format, and prompts to prove a merge on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from topcoat.adapters.attach import Adapters, attach
from topcoat.adapters.settings import AdapterConfig, LoraConfig
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import DenseConfig, Int8Config, Nf4Config

QUANTIZATIONS = {
    "none": None,
    "fp32": DenseConfig(format="fp32"),
    "bf16": DenseConfig(format="bf16"),
    "nf4": Nf4Config(),
    "int8": Int8Config(),
}


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Token ids, one prompt longer than the tiny sliding windows."""
    return [list(range(3, 40)), [7, 7, 200, 4], [100]]


@pytest.fixture(scope="session")
def logits(prompts: list[list[int]]) -> Callable[[nn.Module], Tensor]:
    """All logits of all prompts, (positions, V)."""

    def compute(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in prompts])

    return compute


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Base, Adapters]]:
    """(model_type, format, stored dtype, adapter) -> a base computing in float32 and an adapter whose factors moved."""

    def make(
        model_type: str = "llama",
        format: str = "none",
        stored: torch.dtype = torch.float32,
        config: AdapterConfig | None = None,
        folder: Path | None = None,
    ) -> tuple[Base, Adapters]:
        path = folder or save_tiny(tmp_path / "base", model_type, dtype=stored)
        settings = ModelSettings(path=str(path), quantization=QUANTIZATIONS[format], compute_dtype="fp32", device="cpu")
        base = load_model(settings)
        adapters = attach(base.model, config or LoraConfig(r=4))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return base, adapters

    return make
