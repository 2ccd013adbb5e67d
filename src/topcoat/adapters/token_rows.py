"""Some rows of the embedding train, the rest of the table stays frozen: PEFT's `trainable_token_indices`.

    embed(id) = rows[k] where id = ids[k], else W[id];  a tied head computes those logits with the same rows

The rows hold whole embeddings in float32, not differences from the base's (the form is PEFT's
`TrainableTokensConfig`), so n rows cost n D numbers instead of a copy of the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from topcoat.adapters.limits import tokens_problem, twice_problem
from topcoat.adapters.saved_modules import frozen_outside
from topcoat.errors import TopcoatError
from topcoat.quant.embedding import FrozenEmbedding

DELTA = "token_adapter.trainable_tokens_delta"
"""PEFT's name of the rows, behind the embedding's path."""


class TrainedRows(nn.Module):
    """An embedding (V, D) of which the rows `ids` (N,) are `rows` (N, D)."""

    ids: Tensor
    order: Tensor

    def __init__(self, base: nn.Module, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        table = base.get_parameter("weight").detach()
        self.register_buffer("ids", torch.tensor(list(ids), device=table.device))
        self.register_buffer("order", self.ids.argsort())  # ids[order] ascend
        self.rows = nn.Parameter(table[self.ids].float().clone())
        self.scale = getattr(base, "embed_scale", None)  # Gemma 3's embedding multiplies what it looks up

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, T) -> (B, T, D)."""
        found: Tensor = self.base(input_ids)
        if not self.enabled:
            return found
        place = torch.searchsorted(self.ids[self.order], input_ids).clamp_(max=len(self.ids) - 1)
        at = self.order[place]  # (B, T) the row that may be this id's
        own = self.rows[at].to(found.dtype)
        if self.scale is not None:
            own = own * self.scale.to(own.dtype)
        return torch.where((self.ids[at] == input_ids)[..., None], own, found)

    @property
    def weight(self) -> Tensor:
        """(V, D): the table that computes now."""
        return self.on(self.base.get_parameter("weight")) if self.enabled else self.base.get_parameter("weight")

    def on(self, table: Tensor) -> Tensor:
        """`table` (V, D) with the trained rows in their places."""
        return table.index_copy(0, self.ids.to(table.device), self.rows.to(table))


class TiedRows(nn.Module):
    """The head of a model whose head is its embedding: those rows are the embedding's trained ones."""

    def __init__(self, base: nn.Module, embedding: TrainedRows) -> None:
        super().__init__()
        self.base = base
        self._embedding = [embedding]  # in a list: the rows belong to the embedding and are listed once

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V)."""
        logits: Tensor = self.base(x)
        embedding = self._embedding[0]
        if not embedding.enabled:
            return logits
        return logits.index_copy(-1, embedding.ids, (x @ embedding.rows.to(x.dtype).T).to(logits.dtype))

    @property
    def weight(self) -> Tensor:
        """(V, D): the table that computes now."""
        return self._embedding[0].weight

    @property
    def bias(self) -> None:
        """A tied head has none: its rows are the embedding's."""


def find_embedding(model: nn.Module, ids: Sequence[int], saved: Sequence[str]) -> tuple[str, str | None]:
    """Paths of the input embedding and of the head that is tied to it (None where it is not).

    Raises TopcoatError for ids that it does not have, and where it is trained whole already.
    """
    where = "adapter.trainable_token_indices"
    modules = dict(model.named_modules())
    getter = getattr(model, "get_input_embeddings", None)  # transformers models have it, bare torch modules do not
    embedding = getter() if getter else None
    path = next((path for path, module in modules.items() if module is embedding), None)
    if path is not None and isinstance(embedding, FrozenEmbedding):
        raise frozen_outside(where, f"rows of {path}", path, embedding)
    if embedding is None or path is None or not isinstance(embedding, nn.Embedding):
        raise TopcoatError(
            f"{where} needs an input embedding, and this model names none", where, "leave trainable_token_indices out"
        )
    problem = tokens_problem(ids, embedding.num_embeddings) or (twice_problem(path) if path in saved else None)
    if problem is not None:
        raise TopcoatError.gather([problem])
    tied = [p for p, m in modules.items() if p != path and getattr(m, "weight", None) is embedding.weight]
    return path, tied[0] if tied else None
