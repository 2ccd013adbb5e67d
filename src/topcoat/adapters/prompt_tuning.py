"""Prompt tuning: n input embeddings learned in front of the text, by themselves or through a small network (P-tuning).

    prompt_tuning   v = E                 E (n, D), at first rows of the embedding: of a text, or drawn
    p_tuning        v = f(E)              f an MLP of three layers, or a bidirectional LSTM and an MLP of two

PEFT's `PROMPT_TUNING` and `P_TUNING`; a file holds v alone, so what is read back from one trains on without f.

Papers: Lester et al. 2021, arXiv:2104.08691; Liu et al. 2021, arXiv:2103.10385 (P-tuning).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.adapters.settings import PromptTuningConfig, PTuningConfig
from topcoat.adapters.start import Start
from topcoat.adapters.virtual_tokens import NAME, VirtualTokens, width_of
from topcoat.errors import TopcoatError


class Prompt(VirtualTokens):
    """Virtual tokens as input embeddings."""

    def inputs(self, values: Tensor, width: int) -> Tensor:
        """The values themselves."""
        return values


def prompt_tuning(model: PreTrainedModel, config: PromptTuningConfig, start: Start | None) -> Prompt:
    """Embeddings of the model's width at their start; without a `start`, at none in particular.

    Raises TopcoatError for a text of no tokens, or one that nothing can tokenize.
    """
    table = model.get_input_embeddings()
    count = table.num_embeddings
    assert isinstance(count, int)
    shape = (config.num_virtual_tokens, width_of(model))
    if start is None:
        return Prompt(config, torch.zeros(shape))
    generator = start.generator(NAME)
    if config.prompt_tuning_init == "RANDOM":
        return Prompt(config, torch.randn(shape, generator=generator))  # as PEFT, far from the embedding's scale
    if config.prompt_tuning_init == "TEXT":
        ids = _text_ids(config, start)
    else:
        ids = torch.randint(count, shape[:1], generator=generator)
    with torch.no_grad():  # through the module, which may scale what it looks up
        return Prompt(config, table(ids.to(model.device)).float().clone())


def _text_ids(config: PromptTuningConfig, start: Start) -> Tensor:
    """The text's tokens (n,), cut or repeated to the number of virtual ones, as PEFT does."""
    if start.tokenize is None:
        raise TopcoatError(
            "prompt_tuning_init: TEXT needs a tokenizer", "adapter.prompt_tuning_init", "give attach one: tokenize=..."
        )
    ids = start.tokenize(config.prompt_tuning_init_text or "")
    if not ids:
        raise TopcoatError(
            f"adapter.prompt_tuning_init_text is {config.prompt_tuning_init_text!r}, which has no tokens",
            "adapter.prompt_tuning_init_text",
            "write the task in words, or prompt_tuning_init: SAMPLE_VOCAB",
        )
    n = config.num_virtual_tokens
    return torch.tensor((ids * math.ceil(n / len(ids)))[:n])


def p_tuning(model: PreTrainedModel, config: PTuningConfig, start: Start | None) -> Prompt:
    """Embeddings and their network; without a `start` the embeddings alone, which wait for a file's."""
    n, width = config.num_virtual_tokens, width_of(model)
    if start is None:
        return Prompt(config, torch.zeros(n, width))
    hidden = config.encoder_hidden_size or width
    lstm = config.encoder_reparameterization_type == "LSTM"
    generator = start.generator(NAME)
    make = (
        partial(LstmEncoder, width, hidden, config) if lstm else partial(mlp, [width, hidden, hidden, width], nn.ReLU)
    )
    encoder = started(make, generator)
    return Prompt(config, torch.randn(n, width, generator=generator), encoder)


class LstmEncoder(nn.Module):
    """(n, D) -> (n, D): a bidirectional LSTM along the tokens, then two linears."""

    def __init__(self, width: int, hidden: int, config: PTuningConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            width,
            hidden,
            num_layers=config.encoder_num_layers,
            dropout=config.encoder_dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.mlp = mlp([2 * hidden, 2 * hidden, width], nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, D) -> (n, D)."""
        out: Tensor = self.mlp(self.lstm(x[None])[0][0])
        return out


def mlp(widths: list[int], between: Callable[[], nn.Module]) -> nn.Sequential:
    """Linears of these widths with `between` after each but the last."""
    layers: list[nn.Module] = []
    for inner, out in pairwise(widths):
        layers += [nn.Linear(inner, out), between()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def started(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """What `make` makes, at torch's own start drawn from `generator` instead of the global stream: uniform up to
    1 / sqrt(inputs) of a linear, 1 / sqrt(hidden) of an LSTM."""
    with torch.device("meta"):
        encoder = make()
    encoder.to_empty(device="cpu")
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.LSTM):
            bound = 1 / math.sqrt(module.in_features if isinstance(module, nn.Linear) else module.hidden_size)
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return encoder
