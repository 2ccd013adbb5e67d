"""What a run holds, as numbers: the same counts from a config alone and from a loaded model with its adapters.

Everything that has a size in a bill is a function of `Counts` (`sizes.py`), so the plan of a model that is not there
and the bill of the one that is loaded can only differ where these counts do; a test holds them together on every
family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from topcoat.adapters.patterns import chosen
from topcoat.adapters.settings import (
    AdapterConfig,
    BesideConfig,
    FullConfig,
    PromptConfig,
    TargetedConfig,
    TokenRowsConfig,
)
from topcoat.errors import TopcoatError
from topcoat.kernels.recompute import BlockSizes
from topcoat.planning.activations import Ranks
from topcoat.planning.architecture import Architecture, BlockLinear
from topcoat.planning.trained import (
    fused_rank,
    held_numbers,
    kept_numbers,
    prompt_sizes,
    scored_numbers,
    shared_numbers,
    trained_sizes,
)
from topcoat.quant.settings import DenseConfig, GgufConfig, QuantConfig, StoredConfig, read_config
from topcoat.quant.sizes import ITEM_BYTES, weight_bytes

QKV = ("q_proj", "k_proj", "v_proj", "qkv_proj")
GATE_UP = ("gate_proj", "up_proj", "gate_up_proj")
O_OUT = ("o_proj",)
DOWN = ("down_proj",)
OWN_INPUT = {"o_proj": 1, "dense": 1, "down_proj": 2, "dense_4h_to_h": 2}
"""Linears whose input is no other linear's output, and how many numbers of its width autograd keeps for it."""


@dataclass(frozen=True)
class BlockCounts:
    """What the hand-written blocks need to be counted: widths, ranks and stacked adapters, one entry a layer."""

    sizes: tuple[BlockSizes, ...]
    ranks: tuple[Ranks, ...]
    stacked: int
    """Numbers of the adapters' matrices as the products read them: A (R, I) and B (O, R) of each stack."""


@dataclass(frozen=True)
class Counts:
    """Numbers of everything that takes memory. `linears` are those inside the blocks, (leaf, O, I) -> how many."""

    linears: Mapping[tuple[str, int, int], int]
    codes_bytes: int
    """Frozen linears as stored, without scales."""
    constant_bytes: int
    """Their scales and offsets."""
    embeddings: int
    """Embedding and head, a tied one once."""
    rest: int
    """Norms, routers and biases."""
    vocab: int
    layers: int
    hidden: int
    trained: Mapping[int, int]
    """Numbers of one trained tensor -> how many of them."""
    quantized: bool
    token_numbers: int
    """Numbers that autograd keeps for one token on transformers' layers, norms left out."""
    held: int = 0
    """Numbers of the adapter that do not train, in float32 (`trained.py`)."""
    scored: int = 0
    """Trained numbers that AdaLoRA keeps two scores of, in float32."""
    full: bool = False
    blocks: BlockCounts | None = None
    """None where transformers' layers compute."""
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def trained_numbers(self) -> int:
        """P of the engine study."""
        return sum(n * times for n, times in self.trained.items())

    @property
    def file_numbers(self) -> int:
        """Numbers in the adapter's file, at most: A0 and B0, a frozen A and VeRA's projections are written as well."""
        return self.trained_numbers + self.held

    def largest_weight(self) -> int:
        """Numbers of the largest weight that one product reads: of a whole stack in the hand-written blocks."""
        if self.blocks is None:
            return max((out * inner for _, out, inner in self.linears), default=0)
        stacks: Counter[str] = Counter()
        for (leaf, out, inner), times in self.linears.items():
            stack = "qkv" if leaf in QKV else "gate_up" if leaf in GATE_UP else leaf
            stacks[stack] += out * inner * (times // self.layers)
        return max(stacks.values(), default=0)


def counts_of(
    architecture: Architecture, adapter: AdapterConfig, stored: QuantConfig, *, by_hand: bool | None = None
) -> Counts:
    """The counts of a run on `architecture`, whose frozen linears are `stored` so; no file but its config is needed.

    `by_hand` overrides which path computes. Raises TopcoatError for target modules that match nothing.
    """
    a = architecture
    stored = _as_numbers(a, stored)
    full = isinstance(adapter, FullConfig)
    fast = (a.by_hand if by_hand is None else by_hand) and fused_rank(adapter, "") is not None and not a.experts
    linears: Counter[tuple[str, int, int]] = Counter()
    codes = constants = 0
    for linear in a.linears:
        linears[linear.leaf, linear.out_features, linear.in_features] += a.layers * linear.copies
    for linear, config, times in [] if full or _as_in_file(a, stored) else _formats(a, stored):
        one = weight_bytes(config, linear.out_features, linear.in_features)
        codes, constants = codes + one[0] * times, constants + one[1] * times
    if not full and _as_in_file(a, stored):
        codes = a.stored_linear_bytes or 0
    trained, per_layer = (_everything(a), []) if full else _adapted(a, adapter)
    held, scored, kept = _beside(a, adapter)
    return Counts(
        linears=linears,
        codes_bytes=codes,
        constant_bytes=constants,
        embeddings=a.embedding_numbers,
        rest=a.rest_numbers + a.bias_numbers,
        vocab=a.vocab,
        layers=a.layers,
        hidden=a.hidden,
        trained=trained,
        quantized=not full and stored.format not in ITEM_BYTES,
        token_numbers=kept + token_numbers((n.leaf, n.out_features, n.in_features, _passed(a, n)) for n in a.linears),
        held=held,
        scored=scored,
        full=full,
        blocks=_blocks(a, per_layer) if fast else None,
        notes=a.assumed,
    )


def _formats(a: Architecture, stored: QuantConfig) -> Iterator[tuple[BlockLinear, QuantConfig, int]]:
    """(linear, the format it is stored in, how many of them); `overrides` go by the linear's path."""
    if not stored.overrides:
        yield from ((linear, stored, a.layers * linear.copies) for linear in a.linears)
        return
    from topcoat.quant.overrides import matches  # imports torch, and few recipes mix formats

    others = {pattern: read_config(value) for pattern, value in stored.overrides.items()}
    for at in range(a.layers):
        for linear in a.linears:
            path = f"{a.prefix}.{at}.{linear.path}"
            yield linear, next((c for p, c in others.items() if matches(p, path)), stored), linear.copies


def _as_numbers(a: Architecture, stored: QuantConfig) -> QuantConfig:
    """`stored`, or the plain numbers that it means where the checkpoint is not quantized."""
    if isinstance(stored, StoredConfig) and a.stored_linear_bytes is None and a.stored_dtype is not None:
        return DenseConfig.model_validate({"format": a.stored_dtype, "overrides": stored.overrides})
    return stored


def _as_in_file(a: Architecture, stored: QuantConfig) -> bool:
    """Whether the blocks' linears stay in the bytes that a GGUF file, or a quantized checkpoint, has for them."""
    keeps = isinstance(stored, StoredConfig) or (isinstance(stored, GgufConfig) and stored.type == "stored")
    return keeps and a.stored_linear_bytes is not None


def token_numbers(linears: Iterable[tuple[str, int, int, int]]) -> int:
    """Numbers that autograd keeps for one token, norms left out; of linears as (leaf, O, I, how many it passes)."""
    return sum(times * (out + OWN_INPUT.get(leaf, 0) * inner) for leaf, out, inner, times in linears)


def _passed(a: Architecture, linear: BlockLinear) -> int:
    """How many linears of this kind one token passes in all layers: of a mixture's experts a few."""
    if linear.copies == 1:
        return a.layers
    inner = linear.in_features if linear.leaf in DOWN else linear.out_features
    return a.layers * max(1, a.mlp // inner)


def _everything(a: Architecture) -> Counter[int]:
    """Sizes of all parameters of a model that trains whole."""
    trained: Counter[int] = Counter()
    for linear in a.linears:
        trained[linear.out_features * linear.in_features] += a.layers * linear.copies
        if linear.bias:
            trained[linear.out_features] += a.layers * linear.copies
    trained[a.vocab * a.hidden] += 1 if a.tied else 2
    for n in a.block_rest:
        trained[n] += a.layers
    for n in a.last_norm:
        trained[n] += 1
    return trained


def _adapted(a: Architecture, adapter: AdapterConfig) -> tuple[Counter[int], list[dict[str, int]]]:
    """Sizes of the adapter's tensors, and for every layer the rank on each adapted linear, by leaf."""
    if isinstance(adapter, PromptConfig):
        sizes = Counter(prompt_sizes(adapter, a.layers, a.hidden, a.block_sizes.key_value))
        return sizes + _whole(a, adapter), []
    if not isinstance(adapter, TargetedConfig):
        raise TopcoatError(f"adapter.method {adapter.method} cannot be planned", "adapter.method", "write lora or full")
    by_path = {f"{a.prefix}.{at}.{linear.path}": (at, linear) for at in range(a.layers) for linear in a.linears}
    trained: Counter[int] = Counter()
    per_layer: list[dict[str, int]] = [{} for _ in range(a.layers)]
    for path in chosen(list(by_path), adapter):
        at, linear = by_path[path]
        for n in trained_sizes(adapter, path, linear.out_features, linear.in_features):
            trained[n] += linear.copies
        per_layer[at][linear.leaf] = fused_rank(adapter, path) or 0
    trained += _whole(a, adapter)
    if isinstance(adapter, TokenRowsConfig) and adapter.trainable_token_indices:
        trained[len(adapter.trainable_token_indices) * a.hidden] += 1
    return trained, per_layer


def _whole(a: Architecture, adapter: BesideConfig) -> Counter[int]:
    """Sizes of the modules that train whole beside the adapter."""
    known = {"lm_head": a.vocab * a.hidden, "embed_tokens": a.vocab * a.hidden, "norm": sum(a.last_norm)}
    trained: Counter[int] = Counter()
    for name in adapter.modules_to_save:
        if name.rsplit(".", 1)[-1] not in known:
            fix = f"a plan counts {', '.join(known)}"
            what = f"adapter.modules_to_save names {name!r}, whose size no plan knows"
            raise TopcoatError(what, "adapter.modules_to_save", fix)
        trained[known[name.rsplit(".", 1)[-1]]] += 1
    return trained


def _beside(a: Architecture, adapter: AdapterConfig) -> tuple[int, int, int]:
    """Numbers that an adapter holds without training them, numbers that it scores, and those it keeps of a token."""
    if not isinstance(adapter, TargetedConfig):
        return 0, 0, 0
    by_path = {f"{a.prefix}.{at}.{linear.path}": linear for at in range(a.layers) for linear in a.linears}
    adapted = [
        (path, linear.out_features, linear.in_features, linear.copies)
        for path, linear in ((path, by_path[path]) for path in chosen(list(by_path), adapter))
    ]
    held = sum(times * held_numbers(adapter, path, out, inner) for path, out, inner, times in adapted)
    held += shared_numbers(adapter, ((out, inner) for _, out, inner, _ in adapted))
    scored = sum(times * scored_numbers(adapter, path, out, inner) for path, out, inner, times in adapted)
    return held, scored, sum(kept_numbers(adapter, path, out, inner) for path, out, inner, _ in adapted)


def _blocks(a: Architecture, per_layer: list[dict[str, int]]) -> BlockCounts:
    ranks, stacked = [], 0
    for layer in per_layer:
        own = Ranks(*(sum(layer.get(leaf, 0) for leaf in stack) for stack in (QKV, O_OUT, GATE_UP, DOWN)))
        ranks.append(own)
        for stack, rank in zip((QKV, O_OUT, GATE_UP, DOWN), (own.qkv, own.o, own.gate_up, own.down), strict=True):
            stacked += rank * _width([linear for linear in a.linears if linear.leaf in stack])
    return BlockCounts((a.block_sizes,) * a.layers, tuple(ranks), stacked)


def _width(stack: Iterable[BlockLinear]) -> int:
    """I + O of a stack."""
    stack = list(stack)
    return stack[0].in_features + sum(linear.out_features for linear in stack) if stack else 0
