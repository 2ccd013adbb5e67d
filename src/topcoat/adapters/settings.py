"""Settings of the adapters: one type per method, so `adapter: {method: lora}` accepts LoRA's keys and no others.

No torch is imported here: a recipe is checked before torch is. The methods stand in the files of the same name; the
table `METHODS` is in `adapters/methods.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from topcoat.config import Config

FastPissa = Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$")]


class AdapterConfig(Config):
    """What every method's settings share: the name that picks it."""

    method: str

    @property
    def virtual_tokens(self) -> int:
        """Positions that the method takes before every example, beside the example's own."""
        return 0


class BesideConfig(AdapterConfig):
    """Settings of every method beside which other modules may train."""

    modules_to_save: list[str] = Field(default_factory=list)
    """Modules trained whole beside the adapter (a full fp32 copy each), such as lm_head of an untied model."""


class TargetedConfig(BesideConfig):
    """Settings of every method that stands on linears: which ones, and what trains beside them."""

    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Linears to adapt: "all-linear" (all in the blocks, not the head), names such as q_proj, or regular
    expressions over the whole path such as `.*layers\\.[0-9]\\.mlp\\..*`."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Linears to leave out of target_modules: names or regular expressions, as there."""
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = None
    """Numbers of the blocks to adapt, from 0; null adapts all of them."""


class TokenRowsConfig(TargetedConfig):
    """Settings of LoRA and AdaLoRA and their kin, beside which rows of the embedding may train."""

    trainable_token_indices: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Token ids whose embedding rows train, such as those of new special tokens. A tied head follows them."""


class LoraConfig(TokenRowsConfig):
    """LoRA (arXiv:2106.09685): y = W x + scale * B A x with W frozen."""

    method: Literal["lora"] = "lora"
    """Low-rank update beside each frozen linear."""
    r: int = Field(16, ge=1)
    """Inner width of the update. Adds r * (in_features + out_features) parameters to each layer."""
    lora_alpha: float = Field(32.0, gt=0)
    """Strength of the update: scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed while training. Slows the step; 0.05 to 0.1 helps only on small data."""
    use_rslora: bool = False
    """Divide by sqrt(r), rsLoRA (arXiv:2312.03732): keeps the update's size steady as r grows."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """r of some linears: the end of a path, or a regular expression for it, and the rank there."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """lora_alpha of some linears, named as in rank_pattern."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"] | FastPissa = True
    """Start of A and B. true: A uniform, B zero. pissa (arXiv:2404.02948): the base's largest directions;
    pissa_niter_16 finds them faster. olora (arXiv:2406.01775): orthonormal B from QR. loftq (arXiv:2310.08659):
    what rounding the base lost. eva (arXiv:2410.07170): the directions of your data. gaussian, orthogonal: as PEFT."""
    eva_rho: float = Field(2.0, ge=1)
    """With init_lora_weights: eva, the most rank one layer may have, as a multiple of r; the total stays."""
    loraplus_lr_ratio: float | None = Field(None, ge=1)
    """LoRA+ (arXiv:2402.12354): lora_B learns this many times faster than lora_A; 16 is common, with a lower rate."""
    freeze_lora_a: bool = False
    """LoRA-FA (arXiv:2308.03303): lora_A stays at its random start, which halves gradients and optimizer states."""

    @model_validator(mode="after")
    def _even(self) -> LoraConfig:
        odd = [r for r in (self.r, *self.rank_pattern.values()) if r % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            raise ValueError(f"an orthogonal start needs even ranks, and one is {odd[0]}; add one to it")
        return self

    @model_validator(mode="after")
    def _one_source_of_ranks(self) -> LoraConfig:
        if self.init_lora_weights == "eva" and self.rank_pattern:
            raise ValueError("eva shares out the ranks itself; leave rank_pattern out")
        return self

    def at(self, path: str) -> LoraConfig:
        """These settings with the rank and alpha of the linear at `path`."""
        r = self.rank_pattern.get(_pattern_of(self.rank_pattern, path), self.r)
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, path), self.lora_alpha)
        return self.model_copy(update={"r": r, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}})


class DoraConfig(LoraConfig):
    """DoRA (arXiv:2402.09353): LoRA with a learned length for each row of the weight. No server takes it: merge."""

    method: Literal["dora"] = "dora"  # type: ignore[assignment]  # one value of the union's key, as in every type
    """Adds out_features parameters to each layer's LoRA, and a product with the base's weight to each step."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """Start of A and B, as LoRA's; starts that take part of the weight have no DoRA form that could be saved."""


class QaloraConfig(LoraConfig):
    """QA-LoRA (arXiv:2309.14717): LoRA on means of groups of inputs, which integer weights take up when merged."""

    method: Literal["qalora"] = "qalora"  # type: ignore[assignment]  # one value of the union's key, as in every type
    """Wants integer weights, model.quantization: {format: int4}; the merged model is those integers, served as they
    were trained."""
    init_lora_weights: Literal[True, "gaussian"] = True
    """Start of A; B starts at zero."""
    qalora_group_size: Literal[16, 32, 64, 128, 256] = 32
    """Inputs that are averaged: the group_size of model.quantization, or a multiple of it. Adds
    r * (in_features / qalora_group_size + out_features) parameters to each layer."""


class AdaloraConfig(TokenRowsConfig):
    """AdaLoRA (arXiv:2303.10512): W x + s P diag(E) Q x, whose ranks move to the linears where they matter most."""

    method: Literal["adalora"] = "adalora"
    """A step takes longer than LoRA's and the start has more parameters; what is left is a plain LoRA."""
    init_r: int = Field(12, ge=1)
    """Rank of every linear at the start; the paper takes one and a half times target_r."""
    target_r: int = Field(8, ge=1)
    """Mean rank over the adapted linears at the end: together they keep target_r times their number."""
    lora_alpha: float = Field(24.0, gt=0)
    """Strength of the update: scale = lora_alpha / init_r, and stays so when ranks are taken away."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed while training."""
    tinit: int | None = Field(None, ge=0)
    """Steps before the first rank is taken away. null takes a tenth of the run, as in the paper."""
    tfinal: int | None = Field(None, ge=0)
    """Last steps of the run, in which the ranks stay as they are. null takes two fifths of the run; the paper takes
    about half."""
    deltaT: int = Field(1, ge=1)
    """Steps between two looks at which ranks to keep; the paper takes 10 to 100 in runs of thousands of steps."""
    beta1: float = Field(0.85, gt=0, lt=1)
    """Smoothing of the sensitivity |w dL/dw| over the steps."""
    beta2: float = Field(0.85, gt=0, lt=1)
    """Smoothing of how much that sensitivity varies."""
    orth_reg_weight: float = Field(0.5, ge=0)
    """Weight in the loss of how far P and Q are from orthonormal; the paper takes 0.1 to 0.5."""
    total_step: int | None = Field(None, ge=1)
    """Steps of the whole run, as PEFT's files state them. null, as a recipe leaves it, takes those of the run."""
    rank_pattern: dict[str, list[bool]] = Field(default_factory=dict)
    """Which of the init_r directions a finished run has kept, by linear. Files state it; a recipe leaves it out."""

    @model_validator(mode="after")
    def _something_to_take_away(self) -> AdaloraConfig:
        if self.target_r >= self.init_r:
            raise ValueError(f"target_r is {self.target_r}, and init_r {self.init_r} leaves no rank to take away")
        return self


class IecConfig(LoraConfig):
    """IEC, the adapter of IR-QLoRA (arXiv:2402.05445): LoRA whose two products each have a short path around them."""

    method: Literal["iec"] = "iec"  # type: ignore[assignment]  # one value of the union's key, as in every type
    """Adds two numbers to each layer's LoRA, and is saved as a plain LoRA. On an icq format it is IR-QLoRA."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """Start of A and B, as LoRA's; the short paths start at nothing."""


class Ia3Config(TargetedConfig):
    """IA3 (arXiv:2205.05638): a learned factor for each key, value and feed-forward activation. Very few parameters."""

    method: Literal["ia3"] = "ia3"
    """Wants a learning rate about ten times LoRA's."""
    target_modules: Literal["all-linear"] | list[str] = Field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"])
    """Linears to scale, as for LoRA; the default names those of Llama and its kin."""
    feedforward_modules: list[str] = Field(default_factory=lambda: ["down_proj"])
    """Those of them whose inputs are scaled; of the others it is the outputs."""


class VeraConfig(TargetedConfig):
    """VeRA (arXiv:2310.11454): two learned vectors a layer around random projections that all layers share."""

    method: Literal["vera"] = "vera"
    """Adds out_features + r parameters to each layer; wants a learning rate about ten times LoRA's."""
    r: int = Field(256, ge=1)
    """Inner width of the shared projections; may be above a matrix's rank, as they do not train."""
    vera_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed while training."""
    d_initial: float = Field(0.1, gt=0)
    """First value of the inner vector d."""
    projection_prng_key: int = Field(0, ge=0)
    """Seed of the shared projections, which are saved all the same."""


class MissConfig(TargetedConfig):
    """MiSS (arXiv:2409.15371): one matrix shared by all pieces of the input; LoRA with half of it fixed."""

    method: Literal["miss"] = "miss"
    """Adds r * out_features parameters to each layer."""
    r: int = Field(64, ge=1)
    """Length of a piece: the rank of the update."""
    miss_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs zeroed while training."""


def _pattern_of(patterns: Iterable[str], path: str) -> str:
    """The first pattern that matches the end of `path` from a dot on, as PEFT reads them; "" if none does."""
    return next((pattern for pattern in patterns if re.fullmatch(rf"(.*\.)?({pattern})", path)), "")


class PromptConfig(BesideConfig):
    """Settings of every method that adds tokens before the text and changes no weight; none of them can be merged."""

    num_virtual_tokens: int = Field(20, ge=1)
    """Virtual tokens before every example. Each takes a position of the context, and computes as a token does."""

    @property
    def virtual_tokens(self) -> int:
        """num_virtual_tokens."""
        return self.num_virtual_tokens


class PromptTuningConfig(PromptConfig):
    """Prompt tuning (arXiv:2104.08691): input embeddings learned in front of the text."""

    method: Literal["prompt_tuning"] = "prompt_tuning"
    """Trains num_virtual_tokens * width numbers; wants about ten times LoRA's learning rate, and a large model."""
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    """First values: embeddings of tokens drawn from the vocabulary, of prompt_tuning_init_text, or normal numbers."""
    prompt_tuning_init_text: str | None = None
    """With prompt_tuning_init: TEXT, the text; cut or repeated to num_virtual_tokens tokens."""

    @model_validator(mode="after")
    def _text_where_due(self) -> PromptTuningConfig:
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise ValueError("prompt_tuning_init: TEXT and prompt_tuning_init_text go together; write both, or neither")
        return self


class PTuningConfig(PromptConfig):
    """P-tuning (arXiv:2103.10385): prompt tuning whose embeddings come out of a small network while they train."""

    method: Literal["p_tuning"] = "p_tuning"
    """Saves num_virtual_tokens * width numbers, and trains the network besides."""
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """The network: an MLP of three layers, or a bidirectional LSTM and an MLP of two."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """Inner width of the network. null takes the width of an embedding."""
    encoder_num_layers: int = Field(2, ge=1)
    """Layers of the LSTM; the MLP always has its three."""
    encoder_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the numbers between the LSTM's layers zeroed while training."""

    @model_validator(mode="after")
    def _of_the_lstm(self) -> PTuningConfig:
        if self.encoder_reparameterization_type == "MLP" and (self.encoder_num_layers != 2 or self.encoder_dropout):
            raise ValueError(
                "encoder_num_layers and encoder_dropout are the LSTM's; choose the LSTM, or leave them out"
            )
        if self.encoder_dropout and self.encoder_num_layers == 1:
            raise ValueError(
                "encoder_dropout acts between layers, and encoder_num_layers is 1; write two, or no dropout"
            )
        return self


class PrefixTuningConfig(PromptConfig):
    """Prefix tuning (arXiv:2101.00190): keys and values learned in front of the text's, in every layer."""

    method: Literal["prefix_tuning"] = "prefix_tuning"
    """Saves num_virtual_tokens * 2 * layers * key-value width numbers, and trains the network besides."""
    prefix_projection: bool = True
    """Let keys and values come out of an MLP while they train, as in the paper; false is p_tuning_v2."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """Inner width of the MLP; the paper takes 512. null takes the width of keys."""
    init_weights: Literal["zero"] | None = None
    """First keys and values without prefix_projection: normal numbers, or zero. Zero keys still dilute attention."""

    @model_validator(mode="after")
    def _one_start(self) -> PrefixTuningConfig:
        if self.prefix_projection and self.init_weights:
            raise ValueError(
                "nothing reaches the MLP through init_weights: zero; write prefix_projection: false with it"
            )
        return self


class PTuningV2Config(PromptConfig):
    """P-tuning v2 (arXiv:2110.07602): a prefix in every layer, trained itself. As prefix_tuning without the MLP."""

    method: Literal["p_tuning_v2"] = "p_tuning_v2"
    """Trains num_virtual_tokens * 2 * layers * key-value width numbers; wants about ten times LoRA's learning rate."""
    init_weights: Literal["zero"] | None = None
    """First keys and values: normal numbers, or zero. Zero keys still dilute attention: no start is the base itself."""


class FullConfig(AdapterConfig):
    """Full fine-tuning: every parameter trains, in fp32 masters with computation in the compute dtype."""

    method: Literal["full"] = "full"
    """Costs about 16 bytes a parameter: master, gradient and two optimizer moments, 4 bytes each."""


Adapter = Annotated[
    LoraConfig
    | DoraConfig
    | QaloraConfig
    | AdaloraConfig
    | IecConfig
    | Ia3Config
    | VeraConfig
    | MissConfig
    | PromptTuningConfig
    | PTuningConfig
    | PrefixTuningConfig
    | PTuningV2Config
    | FullConfig,
    Field(discriminator="method"),
]
