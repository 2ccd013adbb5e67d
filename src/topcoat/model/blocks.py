"""Reads the decoder layers of one loaded model into the blocks of the fast engine (`kernels/block.py`).

`LAYOUTS` says where each family keeps the parts of a layer. What cannot be expressed there (an unknown family, a method
that is not LoRA, a trained norm) is answered with the reason, and that model trains on the plain path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from topcoat.adapters.base import Adapter
from topcoat.adapters.trained_copy import TrainedCopy
from topcoat.kernels.attention import Shape
from topcoat.kernels.block import Block, Norm
from topcoat.kernels.gated import Activation
from topcoat.kernels.huge_pages import Slabs
from topcoat.kernels.projection import LowRank, Projection
from topcoat.model.families import FAMILIES
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.stacked import StackedWeight

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""transformers' names (`hidden_act`) -> ours."""


@dataclass(frozen=True)
class Layout:
    """Paths inside one decoder layer, and where its settings are."""

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    norm1: str = "input_layernorm"
    norm2: str = "post_attention_layernorm"
    post1: str | None = None
    post2: str | None = None
    head_norms: bool = False
    """True where q and k are normed a head, by `self_attn.q_norm` and `k_norm`."""
    eps: str = "variance_epsilon"
    """The attribute of a norm that holds its epsilon."""
    activation: str = "hidden_act"
    """The config field that names the activation."""
    window: str | None = "attention"
    """Where a sliding window is written: the attention module, the config, or nowhere."""
    layer_rotary: bool = False
    """True where the rotary module takes the layer's type (Gemma 3 turns local and global layers differently)."""
    optional_rotary: bool = False
    """True where a layer may go without positions (SmolLM3)."""
    must_be_zero: tuple[str, ...] = ("attention_dropout",)
    """Config fields that would add something the block does not compute."""


_GEMMA = Layout(
    norm2="pre_feedforward_layernorm",
    post1="post_attention_layernorm",
    post2="post_feedforward_layernorm",
    eps="eps",
    activation="hidden_activation",
    must_be_zero=("attention_dropout", "use_bidirectional_attention"),
)

LAYOUTS: dict[str, Layout] = {
    "llama": Layout(window=None),
    "mistral": Layout(window="config"),
    "qwen2": Layout(),
    "qwen3": Layout(head_norms=True),
    "smollm3": Layout(optional_rotary=True),
    "gemma2": _GEMMA,
    "gemma3_text": replace(_GEMMA, head_norms=True, layer_rotary=True),
    "phi3": Layout(
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
        window="config",
        must_be_zero=("attention_dropout", "resid_pdrop"),
    ),
}


def read_blocks(model: PreTrainedModel) -> list[Block] | str:
    """The model's decoder layers as blocks, or in a few words why they cannot be."""
    layout = LAYOUTS.get(model.config.model_type)
    if layout is None:
        return f"the block of {model.config.model_type} is not among those written by hand"
    layers = model.get_submodule(FAMILIES[model.config.model_type].blocks)
    for field in layout.must_be_zero:
        if getattr(model.config, field, None):
            return f"config.{field} is {getattr(model.config, field)}"
    if getattr(model.config, layout.activation) not in ACTIVATIONS:
        return f"its activation is {getattr(model.config, layout.activation)}"
    for name, module in layers.named_modules():
        if isinstance(module, TrainedCopy):
            return f"layers.{name} is trained whole"
        if isinstance(module, Adapter) and isinstance(reason := module.low_rank(), str):
            return f"layers.{name}: {reason}"
    adapted = {id(p) for m in layers.modules() if isinstance(m, Adapter) for p in m.parameters()}
    for name, parameter in layers.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapted:
            return f"layers.{name} trains, and is no part of LoRA"
    assert isinstance(layers, nn.ModuleList)
    slabs = Slabs(model.device)
    return [_read(layer, layout, model.config, slabs) for layer in layers]


def read_final_norm(model: PreTrainedModel) -> Norm | None:
    """The norm behind the last block of a model that `read_blocks` reads; None where it trains."""
    family = FAMILIES[model.config.model_type]
    module = model.get_submodule(family.norm)
    if isinstance(module, TrainedCopy) or any(parameter.requires_grad for parameter in module.parameters()):
        return None
    return _norm(module, LAYOUTS[model.config.model_type], family.norm_offset)


def _norm(module: nn.Module, layout: Layout, offset: float) -> Norm:
    weight = module.get_parameter("weight").detach()
    wide = torch.promote_types(weight.dtype, torch.float32)
    return Norm(weight.to(wide) + offset, getattr(module, layout.eps))


def _read(layer: nn.Module, layout: Layout, config: PretrainedConfig, slabs: Slabs) -> Block:
    attention = layer.get_submodule("self_attn")
    offset = FAMILIES[config.model_type].norm_offset
    softcap_field = FAMILIES[config.model_type].attention_softcap
    owner = {"attention": attention, "config": config, None: None}[layout.window]
    rotary = "all"
    if layout.layer_rotary:
        rotary = str(attention.layer_type)
    turns = not layout.optional_rotary or bool(attention.use_rope)
    kv_heads = config.num_key_value_heads or config.num_attention_heads

    def norm(path: str | None) -> Norm | None:
        return None if path is None else _norm(layer.get_submodule(path), layout, offset)

    norm1, norm2 = norm(layout.norm1), norm(layout.norm2)
    assert norm1 is not None
    assert norm2 is not None
    return Block(
        norm1=norm1,
        norm2=norm2,
        qkv=_projection(layer, layout.qkv, slabs),
        o=_projection(layer, (layout.o,), slabs),
        gate_up=_projection(layer, layout.gate_up, slabs),
        down=_projection(layer, (layout.down,), slabs),
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=int(attention.head_dim),  # type: ignore[arg-type]
        attention=Shape(
            float(attention.scaling),  # type: ignore[arg-type]
            getattr(owner, "sliding_window", None),
            getattr(config, softcap_field) if softcap_field else None,
        ),
        activation=ACTIVATIONS[getattr(config, layout.activation)],
        rotary=rotary if turns else None,
        q_norm=norm("self_attn.q_norm" if layout.head_norms else None),
        k_norm=norm("self_attn.k_norm" if layout.head_norms else None),
        post1=norm(layout.post1),
        post2=norm(layout.post2),
    )


def _projection(layer: nn.Module, paths: tuple[str, ...], slabs: Slabs) -> Projection:
    """The linears at `paths` with whatever LoRA stands on them."""
    linears: list[FrozenLinear] = []
    adapters: list[LowRank] = []
    first = 0
    for path in paths:
        module = layer.get_submodule(path)
        if isinstance(module, Adapter):
            terms = module.low_rank()
            assert not isinstance(terms, str)
            adapters += [replace(term, first=first) for term in terms]
            module = module.base
        linear = module if isinstance(module, FrozenLinear) else _frozen(module)
        linears.append(linear)
        first += linear.out_features
    weight = StackedWeight(linears, slabs)
    return Projection(weight, weight.bias(), adapters)


def _frozen(module: nn.Module) -> FrozenLinear:
    assert isinstance(module, nn.Linear)
    return FrozenLinear.share(module)
