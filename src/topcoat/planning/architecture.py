"""What a config.json says of a model, as shapes: its linears, norms and embeddings. Neither torch nor transformers.

`KINDS` says, by transformers' `model_type`, what each architecture puts into a block; tests hold every row to the
parameters of transformers' own model. An architecture that is not listed is taken for a Llama, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from topcoat.errors import Problem, TopcoatError
from topcoat.kernels.recompute import BlockSizes


@dataclass(frozen=True)
class Kind:
    """What one architecture puts into a block. The defaults are Llama's."""

    qkv: Literal["apart", "one", "neox"] = "apart"
    """q, k and v as three linears, as qkv_proj, or as GPT-NeoX's query_key_value."""
    gated: Literal["apart", "one", "no"] = "apart"
    """gate and up as two linears, as gate_up_proj, or a plain MLP of two linears."""
    qkv_bias: bool | str = False
    """True, or the config field that says so."""
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    norms: int = 2
    """Norms of D numbers in a block."""
    norm_vectors: int = 1
    """2 where a norm has a bias too."""
    head_norms: Literal["no", "head", "whole"] = "no"
    """Norms of q and k: none, of one head's width, or of all heads together."""
    post_norms: bool = False
    tied: bool = False
    """tie_word_embeddings where the config does not say."""
    head_dim: int | None = None
    """Width of a head where the config does not say; None is D / heads."""
    experts: int = 0
    """Experts of a mixture where the config does not say; 0 is no mixture."""
    experts_per_token: int = 0
    expert_mlp: str = "intermediate_size"
    by_hand: bool = False
    """The hand-written blocks compute it."""


_GEMMA = {"norms": 4, "post_norms": True, "tied": True, "head_dim": 256, "by_hand": True}

KINDS: dict[str, Kind] = {
    "llama": Kind(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", by_hand=True),
    "mistral": Kind(by_hand=True),
    "qwen2": Kind(qkv_bias=True, by_hand=True),
    "qwen3": Kind(qkv_bias="attention_bias", o_bias="attention_bias", head_norms="head", head_dim=128, by_hand=True),
    "smollm3": Kind(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", tied=True, by_hand=True),
    "gemma": Kind(tied=True, head_dim=256),
    "gemma2": Kind(**_GEMMA),  # type: ignore[arg-type]
    "gemma3_text": Kind(**_GEMMA, head_norms="head"),  # type: ignore[arg-type]
    "phi3": Kind(qkv="one", gated="one", by_hand=True),
    "gpt_neox": Kind(qkv="neox", gated="no", qkv_bias="attention_bias", o_bias="attention_bias", norm_vectors=2),
    "olmo2": Kind(head_norms="whole"),
    "mixtral": Kind(experts=8, experts_per_token=2),
    "qwen3_moe": Kind(
        head_norms="head", head_dim=128, experts=128, experts_per_token=8, expert_mlp="moe_intermediate_size"
    ),
}


@dataclass(frozen=True)
class BlockLinear:
    """One linear of every block: y = x Wᵀ + b with W (O, I)."""

    path: str
    """Inside the block: self_attn.q_proj."""
    out_features: int
    in_features: int
    bias: bool = False
    copies: int = 1
    """As many in each block: the experts of a mixture."""

    @property
    def leaf(self) -> str:
        """q_proj."""
        return self.path.rsplit(".", 1)[-1]

    @property
    def numbers(self) -> int:
        """Weights of all copies, biases left out."""
        return self.out_features * self.in_features * self.copies


@dataclass(frozen=True)
class Architecture:
    """A model as shapes. Letters: D hidden, V vocab, H heads, K head width."""

    name: str
    """Where it is from: a path or a known model's name."""
    kind: str
    """transformers' model_type."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    """Inner width of the MLP that one token passes: all its experts' together in a mixture."""
    vocab: int
    context: int
    tied: bool
    linears: tuple[BlockLinear, ...]
    block_rest: tuple[int, ...]
    """Numbers of each tensor of a block that is in no linear: norms, and the router of a mixture."""
    last_norm: tuple[int, ...]
    prefix: str = "model.layers"
    experts: int = 0
    by_hand: bool = False
    post_norms: bool = False
    head_norms: bool = False
    stored_linear_bytes: int | None = None
    """Bytes of the blocks' linears as a GGUF file stores them."""
    stored_formats: frozenset[tuple[str, str]] = frozenset()
    """(path, number format) of every weight that a checkpoint stores quantized."""
    stored_dtype: str | None = None
    """Number format of a plain checkpoint's weights: bf16, fp16 or fp32; None where the files do not say."""
    assumed: tuple[str, ...] = ()
    """What the files did not say and was assumed; the error is unproved then."""

    @property
    def embedding(self) -> str:
        """Path of the embedding."""
        return self.prefix.removesuffix("layers") + ("embed_in" if self.kind == "gpt_neox" else "embed_tokens")

    @property
    def linear_numbers(self) -> int:
        """N of the engine study: weights of the linears of all blocks."""
        return self.layers * sum(linear.numbers for linear in self.linears)

    @property
    def embedding_numbers(self) -> int:
        """Numbers of embedding and head, a tied one counted once."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def bias_numbers(self) -> int:
        """Numbers of the linears' biases."""
        return self.layers * sum(linear.out_features * linear.copies for linear in self.linears if linear.bias)

    @property
    def rest_numbers(self) -> int:
        """Numbers of norms and routers."""
        return self.layers * sum(self.block_rest) + sum(self.last_norm)

    @property
    def parameters(self) -> int:
        """All numbers of the model, a tied one counted once."""
        return self.linear_numbers + self.embedding_numbers + self.bias_numbers + self.rest_numbers

    @property
    def active_linear_numbers(self) -> int:
        """Weights of the linears that one token passes; fewer than all in a mixture."""
        per_block = sum(n.numbers // n.copies for n in self.linears if n.copies == 1)
        return self.layers * (per_block + (3 * self.hidden * self.mlp if self.experts else 0))

    @property
    def block_sizes(self) -> BlockSizes:
        """Widths of a block, for recompute policies."""
        return BlockSizes(
            hidden=self.hidden,
            query=self.heads * self.head_dim,
            key_value=self.kv_heads * self.head_dim,
            mlp=self.mlp,
            heads=self.heads,
            post_norms=self.post_norms,
            head_norms=self.head_norms,
        )


def architecture_of(facts: Mapping[str, Any], name: str) -> Architecture:
    """The shapes that the values of a config.json mean. Raises TopcoatError with every value that is impossible."""
    read = _Reader(facts, name)
    kind_name = read.kind()
    if kind_name == "gemma3" and isinstance(facts.get("text_config"), Mapping):  # the text part of a multimodal one
        return architecture_of({"model_type": "gemma3_text", **facts["text_config"]}, name)
    kind = KINDS.get(kind_name)
    if kind is None:
        kind = Kind()
        read.assumed.append(f"{kind_name[:40]} is not among the known architectures: taken for a Llama")
    layers = read.whole("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = read.whole("hidden_size", "n_embd", "d_model", "dim")
    heads = read.whole("num_attention_heads", "n_head", "n_heads")
    mlp = read.whole("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * hidden)
    vocab = read.whole("vocab_size", "padded_vocab_size")
    kv_heads = heads if kind.qkv == "neox" else read.whole("num_key_value_heads", "n_head_kv", default=heads)
    width = read.whole("head_dim", default=kind.head_dim or max(1, hidden // max(1, heads)))
    context = read.whole("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", default=1 << 30)
    experts = read.whole("num_local_experts", "num_experts", default=kind.experts) if kind.experts else 0
    taken = read.whole("num_experts_per_tok", default=kind.experts_per_token) if experts else 0
    expert_mlp = read.whole(kind.expert_mlp, default=mlp) if experts else mlp
    query, key_value = heads * width, kv_heads * width
    linears = _attention(kind, read, hidden, query, key_value) + _mlp(kind, read, hidden, expert_mlp, experts)
    tied = read.flag("tie_word_embeddings", kind.tied)
    read.require(hidden, heads, kv_heads, width, kind.head_dim is not None)
    read.note_missing("intermediate_size", mlp, kind_name in KINDS)
    read.note_missing("num_key_value_heads", kv_heads, kind_name in KINDS and kind_name not in OWN_DEFAULTS)
    norms = (hidden,) * (kind.norms * kind.norm_vectors)
    head_norms = {"no": (), "head": (width, width), "whole": (query, key_value)}[kind.head_norms]
    router = (experts * hidden,) if experts else ()
    made = Architecture(
        name=name,
        kind=kind_name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        mlp=expert_mlp * taken if experts else mlp,
        vocab=vocab,
        context=context,
        tied=tied,
        linears=linears,
        block_rest=(*norms, *head_norms, *router),
        last_norm=(hidden,) * kind.norm_vectors,
        prefix="gpt_neox.layers" if kind.qkv == "neox" else "model.layers",
        experts=experts,
        by_hand=kind.by_hand and not facts.get("attention_dropout"),
        post_norms=kind.post_norms,
        head_norms=kind.head_norms == "head",
        assumed=tuple(read.assumed),
    )
    if made.parameters > MOST_PARAMETERS:
        what = f"these sizes make {made.parameters:.1e} parameters, more than any model has"
        raise TopcoatError(what, name, FETCH)
    return made


def _attention(kind: Kind, read: _Reader, hidden: int, query: int, key_value: int) -> tuple[BlockLinear, ...]:
    neox = kind.qkv == "neox"  # whose biases are there unless the config takes them away
    bias, o_bias = read.flag(kind.qkv_bias, neox), read.flag(kind.o_bias, neox)
    if neox:
        return (
            BlockLinear("attention.query_key_value", 3 * hidden, hidden, bias),
            BlockLinear("attention.dense", hidden, hidden, o_bias),
        )
    if kind.qkv == "one":
        inputs: tuple[BlockLinear, ...] = (BlockLinear("self_attn.qkv_proj", query + 2 * key_value, hidden, bias),)
    else:
        widths = (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value))
        inputs = tuple(BlockLinear(f"self_attn.{name}", width, hidden, bias) for name, width in widths)
    return (*inputs, BlockLinear("self_attn.o_proj", hidden, query, o_bias))


def _mlp(kind: Kind, read: _Reader, hidden: int, mlp: int, experts: int) -> tuple[BlockLinear, ...]:
    bias = read.flag(kind.mlp_bias)
    where, copies = ("mlp.experts", experts) if experts else ("mlp", 1)
    if kind.gated == "no":
        return (
            BlockLinear("mlp.dense_h_to_4h", mlp, hidden, True),
            BlockLinear("mlp.dense_4h_to_h", hidden, mlp, True),
        )
    down = BlockLinear(f"{where}.down_proj", hidden, mlp, bias, copies)
    if kind.gated == "one":
        return (BlockLinear(f"{where}.gate_up_proj", 2 * mlp, hidden, bias, copies), down)
    return (*(BlockLinear(f"{where}.{name}", mlp, hidden, bias, copies) for name in ("gate_proj", "up_proj")), down)


_LARGEST = {"num_hidden_layers": 2**9, "hidden_size": 2**20, "vocab_size": 2**24}
_MOST = 2**24
MOST_PARAMETERS = 10**14
"""A hundred times the largest models that are planned for; what claims more is damaged or forged."""
FETCH = "fetch the file again, or take another model"
OWN_DEFAULTS = ("llama", "phi3", "olmo2", "gpt_neox")
"""Kinds whose models have as many key heads as heads where the config does not say."""


class _Reader:
    """Whole numbers out of a config, and all that is wrong with them."""

    def __init__(self, facts: Mapping[str, Any], name: str) -> None:
        self.facts, self.name = facts, name
        self.problems: list[Problem] = []
        self.assumed: list[str] = []

    def whole(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that the config has; 1 and a problem where none is usable."""
        found = next((name for name in names if self.facts.get(name) is not None), None)
        if found is None and default is not None:
            return default
        value = None if found is None else self.facts[found]
        largest = _LARGEST.get(names[0], _MOST if names[0] != "max_position_embeddings" else 2**40)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest:
            return value
        what = (
            f"the config does not say {names[0]}"
            if found is None
            else f"{found} is {str(value)[:40]}, and must be a whole number from 1 to {largest:,}"
        )
        self.problems.append(Problem(what, self.name, FETCH))
        return 1

    def flag(self, setting: bool | str, default: bool = False) -> bool:
        """Yes or no: `setting` itself, or what the config's field of that name says; `default` where it does not."""
        if isinstance(setting, bool):
            return setting
        value = self.facts.get(setting)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.problems.append(Problem(f"{setting} is {str(value)[:40]}, and must be true or false", self.name, FETCH))
        return default

    def note_missing(self, name: str, taken: int, should: bool) -> None:
        """Say what was taken for a number that the files should have and do not say."""
        if should and self.facts.get(name) is None:
            self.assumed.append(f"the config does not say {name}: {taken:,} is taken")

    def kind(self) -> str:
        """transformers' model_type."""
        value = self.facts.get("model_type", "unknown")
        if isinstance(value, str) and value:
            return value
        self.problems.append(Problem(f"model_type is {str(value)[:40]}, and must be a name", self.name, FETCH))
        return "unknown"

    def require(self, hidden: int, heads: int, kv_heads: int, width: int, own_width: bool) -> None:
        """Raise what is wrong, together with what does not go together. Rotary positions turn pairs of numbers, so a
        head's width is even; `own_width` is set by the kind of model, else heads share the hidden size out evenly."""
        divides = self.facts.get("head_dim") is not None or own_width or hidden % heads == 0
        if not self.problems and (heads % kv_heads or heads * width > 64 * hidden or width % 2 or not divides):
            what = f"{heads} heads of {width} with {kv_heads} key heads cannot be a model of hidden size {hidden}"
            self.problems.append(Problem(what, self.name, FETCH))
        if self.problems:
            raise TopcoatError.gather(self.problems)
