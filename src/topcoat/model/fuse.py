"""The fast path of one loaded model: its decoder layers replaced, during a training forward, by the hand-written stack.

Embedding, rotary tables and head stay transformers' own, and a final norm that trains; so do the layers whenever the
fast path is not asked for (generation, chat, merging), because the swap lasts only as long as one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.adapters.base import Adapter
from topcoat.kernels.block import Batch
from topcoat.kernels.decoder import Decoder, Shelf
from topcoat.kernels.documents import Layout
from topcoat.kernels.frozen_norm import FrozenNorm
from topcoat.kernels.recompute import BlockSizes, Policy
from topcoat.model.blocks import LAYOUTS, read_blocks, read_final_norm
from topcoat.model.families import FAMILIES


class FusedModel:
    """`hidden(inputs, rows)` computes what the model's decoder computes, through the hand-written blocks."""

    def __init__(self, model: PreTrainedModel, decoder: Decoder) -> None:
        self.model = model
        self.decoder = decoder
        self._stack = _Stack(model, decoder)
        norm = read_final_norm(model)
        self._norm = None if norm is None else FrozenNorm(norm.weight, norm.eps)
        self._loras = [module for module in model.modules() if isinstance(module, Adapter)]

    @property
    def ready(self) -> bool:
        """False while adapters are partly on and partly off, which the stack does not express."""
        return len({lora.enabled for lora in self._loras}) <= 1

    def hidden(self, inputs: dict[str, Any], rows: Tensor | None = None) -> Tensor:
        """`inputs` as attention_inputs makes them -> hidden states (B * T, D) after the final norm, or `rows` of them.

        rows (N,) int64 are distinct flat positions; the last block computes no others after its attention.
        """
        model, family = self.model, FAMILIES[self.model.config.model_type]
        decoder = model.get_submodule(family.decoder)
        self._stack.rows = rows
        self._stack.adapted = not self._loras or self._loras[0].enabled
        norm = model.get_submodule(family.norm) if self._norm is None else self._norm
        with _swapped(model, family.blocks, nn.ModuleList([self._stack])), _swapped(model, family.norm, norm):
            states: Tensor = decoder(**inputs, use_cache=False).last_hidden_state
        return states.flatten(0, 1)


def fuse(
    model: PreTrainedModel, policies: Sequence[Policy] | Policy = "none", make_shelf: Callable[[], Shelf] | None = None
) -> FusedModel | str:
    """The fast path of `model` with one recompute policy for all layers or one each; or why there is none."""
    if model.config._attn_implementation != "topcoat":
        return f"attention runs through {model.config._attn_implementation}"
    blocks = read_blocks(model)
    if isinstance(blocks, str):
        return blocks
    chosen = [policies] * len(blocks) if isinstance(policies, str) else list(policies)
    return FusedModel(model, Decoder(blocks, chosen, model.device, make_shelf))


def block_sizes(model: PreTrainedModel) -> list[BlockSizes] | None:
    """Widths of every block, for choosing policies; None outside the families of the fast path."""
    config = model.config
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = BlockSizes(
        hidden=config.hidden_size,
        query=config.num_attention_heads * head_dim,
        key_value=(config.num_key_value_heads or config.num_attention_heads) * head_dim,
        mlp=config.intermediate_size,
        heads=config.num_attention_heads,
        post_norms=layout.post1 is not None,
        head_norms=layout.head_norms,
    )
    return [sizes] * config.num_hidden_layers


class _Stack(nn.Module):
    """Stands in the model's list of layers as the only one."""

    def __init__(self, model: PreTrainedModel, decoder: Decoder) -> None:
        super().__init__()
        self._decoder = decoder
        self._model = [model]  # in a list: a submodule here would make a cycle
        self.rows: Tensor | None = None
        self.adapted = True

    def forward(self, x: Tensor, *, position_ids: Tensor, documents: Layout, **unused: Any) -> Tensor:
        """x (B, T, D) -> (B, T, D), or (1, N, D) where `rows` are set."""
        model = self._model[0]
        seed = None
        if model.training and torch.is_grad_enabled() and self._drops():
            seed = int(torch.randint(1 << 62, ()))  # one draw a micro batch: masks follow from it
        batch = Batch(documents, _angles(model, position_ids, self._decoder), seed, self.adapted)
        states: Tensor = self._decoder(x.flatten(0, 1).contiguous(), batch, self.rows)
        return states.view(x.shape) if self.rows is None else states[None]

    def _drops(self) -> bool:
        return any(a.dropout for b in self._decoder.blocks for p in b.projections for a in p.adapters)


def _angles(model: PreTrainedModel, position_ids: Tensor, decoder: Decoder) -> dict[str, tuple[Tensor, Tensor]]:
    """cos and sin (B * T, P) of every table the blocks name, in float32."""
    rotary = model.get_submodule(FAMILIES[model.config.model_type].decoder).get_submodule("rotary_emb")
    wide = torch.zeros((), dtype=torch.promote_types(model.dtype, torch.float32), device=position_ids.device)
    tables = {}
    for name in {block.rotary for block in decoder.blocks if block.rotary is not None}:
        by_layer = LAYOUTS[model.config.model_type].layer_rotary
        cos, sin = rotary(wide, position_ids, name) if by_layer else rotary(wide, position_ids)  # (B, T, 2 P)
        half = cos.shape[-1] // 2
        tables[name] = tuple(x[..., :half].flatten(0, 1).float().contiguous() for x in (cos, sin))
    return tables


@contextmanager
def _swapped(model: nn.Module, path: str, module: nn.Module) -> Iterator[None]:
    """`module` stands at `path` while the `with` lasts."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before = owner.get_submodule(name)
    setattr(owner, name, module)
    try:
        yield
    finally:
        setattr(owner, name, before)
