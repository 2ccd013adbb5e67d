"""Counts of a loaded model with what trains on it, from the tensors themselves: the other source of `Counts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set

from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.base import Adapter
from topcoat.adapters.dora import Dora
from topcoat.adapters.ia3 import Ia3
from topcoat.model.families import blocks_of
from topcoat.model.fuse import FusedModel, block_sizes
from topcoat.planning.activations import Ranks
from topcoat.planning.counts import BlockCounts, Counts, token_numbers
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.sizes import ITEM_BYTES


def loaded_counts(
    model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], fused: FusedModel | None = None
) -> Counts:
    """The counts of `model`, of which `parameters` train, computed by `fused` or else by transformers' layers."""
    linears = _block_linears(model)
    frozen = {path: module for path, module in linears.items() if isinstance(module, FrozenLinear)}
    ours = {id(p) for p in parameters.values()}
    full = not frozen and bool(linears)
    held = _held(model, ours)
    dense = {id(p): p.numel() for p in model.parameters() if full or id(p) not in ours.union(held)}
    inside = {id(module.weight) for module in linears.values() if isinstance(module, nn.Linear)}
    embeddings = {id(p): p for p in _embeddings(model) if full or id(p) not in ours}
    biases = sum(m.bias.numel() for m in frozen.values() if m.bias is not None)
    outside = _stored_outside(model)
    states = [module.weight_state for module in frozen.values()] + outside
    plain = [m for m in linears.values() if isinstance(m, nn.Linear) and not full]  # those nothing was attached to
    kinds = Counter((path.rsplit(".", 1)[-1], m.out_features, m.in_features) for path, m in linears.items())
    return Counts(
        linears=kinds,
        codes_bytes=sum(q.tensors[_codes(q)].nbytes for q in states) + sum(m.weight.nbytes for m in plain),
        constant_bytes=sum(t.nbytes for q in states for name, t in q.tensors.items() if name != _codes(q)),
        embeddings=sum(p.numel() for p in embeddings.values()),
        rest=sum(n for key, n in dense.items() if key not in embeddings and key not in inside) + biases,
        vocab=max([p.shape[0] for p in embeddings.values()] + [q.shape[0] for q in outside]),
        layers=len(blocks_of(model)),
        hidden=model.config.hidden_size,
        trained=Counter(p.numel() for p in parameters.values()),
        quantized=any(q.format not in ITEM_BYTES for q in states),
        token_numbers=_kept(model) + token_numbers((*kind, times) for kind, times in kinds.items()),
        held=sum(t.numel() for t in held.values()),
        scored=sum(p.numel() for m in model.modules() if isinstance(m, AdaLora) for p in m.parameters(recurse=False)),
        full=full,
        blocks=None if fused is None else fused_blocks(fused),
    )


def _kept(model: PreTrainedModel) -> int:
    """As `kept_numbers` of the settings counts it."""
    dora = sum(2 * module.base.out_features for module in model.modules() if isinstance(module, Dora))
    return dora + sum(module.ia3_l.numel() for module in model.modules() if isinstance(module, Ia3))


def _held(model: PreTrainedModel, trained: Set[int]) -> dict[int, Tensor]:
    """The adapters' own tensors that do not train, by id: one that several layers share once."""
    layers = [module for module in model.modules() if isinstance(module, Adapter)]
    own = [t for layer in layers for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))]
    return {id(t): t for t in own if t.is_floating_point() and id(t) not in trained}


def _codes(q: QuantizedWeight) -> str:
    """The tensor that holds the weight itself, in a plugin's format the largest; the others are constants."""
    known = (name for name in ("codes", "blocks", "weight") if name in q.tensors)
    return next(known, None) or max(q.tensors, key=lambda name: q.tensors[name].nbytes)


def fused_blocks(fused: FusedModel) -> BlockCounts:
    """What the hand-written blocks of a loaded model keep and work in depends on."""
    sizes = block_sizes(fused.model)
    assert sizes is not None
    blocks = fused.decoder.blocks
    ranks = tuple(Ranks(*(p.rank for p in block.projections)) for block in blocks)
    stacked = sum(p.rank * (p.in_features + p.out_features) for block in blocks for p in block.projections)
    return BlockCounts(tuple(sizes), ranks, stacked)


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights of the embedding and the head; the same one twice where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [p for module in modules if module is not None for n, p in module.named_parameters() if n.endswith("weight")]


def _stored_outside(model: PreTrainedModel) -> list[QuantizedWeight]:
    """The weights of embedding and head that are quantized; a tied one once."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    states = [m.weight_state for m in modules if isinstance(m, FrozenEmbedding | FrozenLinear)]
    return list({next(iter(q.tensors.values())).data_ptr(): q for q in states}.values())


def _block_linears(model: PreTrainedModel) -> dict[str, FrozenLinear | nn.Linear]:
    """Path -> linear inside the blocks, the adapters' own wrappers looked through."""
    return {
        path.removesuffix(".base"): module
        for path, module in blocks_of(model).named_modules()
        if isinstance(module, FrozenLinear | nn.Linear)
    }
