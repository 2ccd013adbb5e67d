"""What an adapter's first values may follow from: the seed and a module's place, the weights, the user's data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Start:
    """The material of a start."""

    seed: int = 42
    originals: Callable[[str], Tensor] | None = None
    """Path -> the weight (O, I) as it was before it was stored in the base's number format."""
    rows: Iterable[Tensor] = ()
    """Examples of the data, each (1, T) token ids."""
    model: nn.Module | None = None
    """The model that will be adapted, still as it was."""
    linears: Mapping[str, nn.Module] | None = None
    """Its linears, by path."""
    tokenize: Callable[[str], list[int]] | None = None
    """A text as token ids, as the model's tokenizer gives them."""

    def generator(self, path: str) -> torch.Generator:
        """Random numbers for one module: a function of the seed and its path, not of the order of modules."""
        digest = hashlib.sha256(f"{self.seed}/{path}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
