"""NEFTune: x + alpha / sqrt(L d) * u on the embeddings of a document of L tokens and width d, u uniform in [-1, 1].

L is the document's own length, also in a packed row: its noise is as large as it would be alone. Padding gets none.
The noise is drawn from torch's generator, which the loop seeds for each micro batch (`rng.py`), before anything else
is: the hand-written blocks and transformers' layers get the same, and a resumed run draws what the first one drew.

Paper: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.model.families import family_of


def noise_sizes(spans: Sequence[tuple[int, int]], tokens: int, width: int, alpha: float) -> Tensor:
    """The largest noise (tokens,) at each flat position: alpha / sqrt(L d) inside documents at `spans`, 0 outside."""
    sizes = torch.zeros(tokens)
    for start, length in spans:
        sizes[start : start + length] = alpha / math.sqrt(max(1, length) * width)
    return sizes


@contextmanager
def noisy_embeddings(model: PreTrainedModel, spans: Sequence[tuple[int, int]], alpha: float) -> Iterator[None]:
    """Inside, the input embedding of `model` returns noisy rows for documents at `spans` of the flat batch."""

    def add_noise(module: nn.Module, inputs: object, embedded: Tensor) -> Tensor:
        B, T, D = embedded.shape
        noise = torch.rand(B * T, D, device=embedded.device) * 2 - 1  # (B * T, D), float32 whatever is embedded in
        noise *= noise_sizes(spans, B * T, D, alpha).to(embedded.device)[:, None]
        return embedded + noise.view_as(embedded).to(embedded.dtype)

    handle = model.get_submodule(family_of(model).embedding).register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
