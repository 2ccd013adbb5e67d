"""How near a quantized matrix and a low-rank product come to what they stand for: LoftQ and QPiSSA, by definition.

    LoftQ     Q = quant(W - B A), B A = SVD_r(W - deq Q), over and over from B A = 0;   error |W - deq Q - B A|
    QPiSSA    B A = SVD_r(W), Q = quant(W - B A);                                       error |W - B A - deq Q|

Each error is told as a ratio to |W - deq quant(W)|. Written apart from the product's own starts. arXiv:2310.08659,
2404.02948.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.papers.perplexity import linears, text_losses, through
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings

Row = dict[str, Any]
Back = Callable[[Tensor], Tensor]
"""A weight (O, I) -> what a number format gives back of it."""


def low_rank(W: Tensor, r: int) -> Tensor:
    """The nearest matrix of rank r (O, I)."""
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vt[:r]


def loftq(W: Tensor, back: Back, r: int, turns: int) -> list[Tensor]:
    """deq Q + B A (O, I) after each turn."""
    product, found = torch.zeros_like(W), []
    for _ in range(turns):
        Q = back(W - product)
        product = low_rank(W - Q, r)
        found.append(Q + product)
    return found


def qpissa(W: Tensor, back: Back, r: int) -> Tensor:
    """deq Q + B A (O, I)."""
    product = low_rank(W, r)
    return back(W - product) + product


@torch.no_grad()
def starts(spec: Mapping[str, Any]) -> Row:
    """A job: the ratios of every linear of the model, and the loss of texts with its linears as LoftQ starts them."""
    base = load_model(ModelSettings(path=spec["model"], device="cpu"))
    pass_through, r = through(spec["store"]), spec["r"]
    layers: dict[str, dict[str, float]] = {}
    for path, linear in linears(base):
        W = linear.dense_weight(torch.float32)
        plain = float((W - pass_through(W)[0]).norm())
        turns = loftq(W, lambda weight: pass_through(weight)[0], r, spec["turns"])
        ratios = {f"loftq T={t}": float((W - near).norm()) / plain for t, near in enumerate(turns, 1)}
        near = qpissa(W, lambda weight: pass_through(weight)[0], r)
        layers[path] = {**ratios, "qpissa": float((W - near).norm()) / plain}
        linear.weight_state.tensors["weight"].copy_(turns[0])
    names = next(iter(layers.values()))
    ratios = {name: sorted(layer[name] for layer in layers.values()) for name in names}
    return {
        "layers": layers,
        "ratios": {
            name: {"least": found[0], "median": statistics.median(found), "most": found[-1]}
            for name, found in ratios.items()
        },
        "losses": text_losses(base, spec["texts"], spec["window"]),
    }
