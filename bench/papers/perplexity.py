"""A model whose frozen linears went through a number format and back: loss of texts, errors, entropy of codes.

Everything is computed by the dense model on what the format gives back, so formats differ in their numbers alone.
Windows do not overlap, no token of the texts is changed (WikiText keeps its " @-@ " and "<unk>"), and every token of a
window but the first is predicted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.papers.data import text_file
from bench.papers.simulated import BITS, SIMULATED
from topcoat.data.batches import packed
from topcoat.data.render import NOWHERE, Example
from topcoat.kernels.packed_codes import unpack_bits, unpack_flat
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.fits import entropy
from topcoat.quant.formats import make_format
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import read_config
from topcoat.training.objectives.sft import sft

LONGEST = 8
"""Characters of a token, on average, that no text here exceeds."""

Row = dict[str, Any]


def linears(base: Base) -> Iterator[tuple[str, FrozenLinear]]:
    """The frozen linears by path."""
    return ((path, m) for path, m in base.model.named_modules() if isinstance(m, FrozenLinear))


def windows(base: Base, text: str, count: int, length: int) -> list[Example]:
    """The first `count` whole windows of `length` tokens."""
    start = text_file(text).read_text(encoding="utf-8")[: LONGEST * count * length]
    ids = base.tokenizer(start, add_special_tokens=False, verbose=False)["input_ids"]
    parts = [ids[at : at + length] for at in range(0, count * length, length)]
    return [Example(list(part), list(part), NOWHERE) for part in parts if len(part) == length]


@torch.no_grad()
def text_losses(base: Base, texts: Mapping[str, int], length: int) -> dict[str, list[tuple[float, int]]]:
    """Text -> summed loss and predicted tokens of each of its first windows."""
    found = {}
    for text, count in texts.items():
        examples = windows(base, text, count, length)
        batches = [packed(examples, [at]) for at in range(len(examples))]
        found[text] = [(float(sft(base.model, batch)), batch.n_target_tokens) for batch in batches]
    return found


def codes_of(state: QuantizedWeight) -> tuple[Tensor, int] | None:
    """Codes (N, S), one block a row, and their bits; None for formats without codes of 2 to 4 bits."""
    codes = state.tensors.get("codes")
    if codes is None or state.format == "int8":
        return None
    if "low" in state.tensors:
        bits = 8 * codes.shape[1] // state.shape[1]
        return unpack_bits(codes, bits).reshape(-1, int(state.scalars["group_size"])), bits
    bits = int(state.format[2])  # nf4, nf3-icq, ...
    flat = unpack_flat(codes, state.shape[0] * state.shape[1], bits)
    return flat.reshape(-1, int(state.scalars["block_size"])), bits


def through(store: Mapping[str, Any]) -> Callable[[Tensor], tuple[Tensor, float, float | None]]:
    """Weight (O, I) -> what it reads back as, bits a weight, and the mean entropy of its blocks' codes."""
    if "simulated" in store:
        name = store["simulated"]
        return lambda weight: (SIMULATED[name](weight), BITS, None)
    format = make_format(read_config(dict(store)))

    def pass_through(weight: Tensor) -> tuple[Tensor, float, float | None]:
        state = format.quantize(weight)
        codes = codes_of(state)
        told = None if codes is None else float(entropy(codes[0], codes[1]).mean())
        return format.dequantize(state, torch.float32), 8 * state.nbytes / weight.numel(), told

    return pass_through


@torch.no_grad()
def stored_model(spec: Mapping[str, Any]) -> Row:
    """A job: the model of `spec` in the format `store`, on its texts. None of the formats is the model as it is."""
    base = load_model(ModelSettings(path=spec["model"], device="cpu"))
    errors, bits, told, sizes = [], [], [], []
    if spec["store"] is not None:
        pass_through = through(spec["store"])
        for _, linear in linears(base):
            weight = linear.dense_weight(torch.float32)
            back, width, entropies = pass_through(weight)
            errors.append(float((back - weight).norm() / weight.norm()))
            bits.append(width)
            told.append(entropies)
            sizes.append(weight.numel())
            linear.weight_state.tensors["weight"].copy_(back)
    known = [value for value in told if value is not None]
    return {
        "dtype": str(base.compute_dtype),
        "bits_per_weight": _weighted(bits, sizes) if bits else 8.0 * base.compute_dtype.itemsize,
        "mean_error": statistics.fmean(errors) if errors else 0.0,
        "entropy": _weighted(known, sizes) if known else None,
        "losses": text_losses(base, spec["texts"], spec["window"]),
    }


def _weighted(values: list[float], sizes: list[int]) -> float:
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
