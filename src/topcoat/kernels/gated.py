"""The gated activation of an MLP: h = act(gate) * up over a product (T, 2 F) whose first F columns are the gate.

The backward needs nothing but that product: from dh it makes h again (down_proj's adapter wants it), dgate = dh up
act'(gate) and dup = dh act(gate), all in place. act is silu (x σ(x)), gelu (x Φ(x)) or gelu_tanh (its approximation
x σ(2 √(2/π) (x + 0.044715 x³)), exactly the tanh form).

Shazeer 2020, arXiv:2002.05202; GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from topcoat.kernels.dispatch import native_for, wide_dtype
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.library import Library
from topcoat.kernels.triton_ops.available import triton_can

Activation = Literal["silu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""In the order of enum activation in native/gated.c."""


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = x.sigmoid()
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    cdf = 0.5 * torch.erfc(x * -math.sqrt(0.5))
    return x * cdf, cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    double = 2 * math.sqrt(2 / math.pi)
    sigmoid = torch.sigmoid(double * (x + 0.044715 * x**3))
    slope = double * (1 + 3 * 0.044715 * x * x)
    return x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid) * slope


_VALUE_AND_SLOPE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}


def gated_reference(gate_up: Tensor, activation: Activation) -> Tensor:
    """The definition: gate_up (T, 2 F) -> h (T, F)."""
    gate, up = gate_up.to(wide_dtype(gate_up.dtype)).chunk(2, -1)
    return (_VALUE_AND_SLOPE[activation](gate)[0] * up).to(gate_up.dtype)


def gated_backward_reference(dh: Tensor, gate_up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The definition: (h (T, F), (dgate | dup) (T, 2 F)) from dh (T, F) and gate_up (T, 2 F)."""
    wide = wide_dtype(gate_up.dtype)
    gate, up = gate_up.to(wide).chunk(2, -1)
    value, slope = _VALUE_AND_SLOPE[activation](gate)
    dvalue = dh.to(wide)
    dgate_up = torch.cat((dvalue * up * slope, dvalue * value), -1)
    return (value * up).to(dh.dtype), dgate_up.to(gate_up.dtype)


def gated(gate_up: Tensor, activation: Activation, out: Tensor | None = None) -> Tensor:
    """h (T, F) = act(gate) * up into `out`."""
    if _triton_can(gate_up, out):
        from topcoat.kernels.triton_ops import gated as fused

        return fused.gated(gate_up, activation, out)
    library = _native(gate_up, out)
    if library is not None:
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2) if out is None else out
        library.gated(*_arguments(gate_up, out, activation))
        return out
    settle()
    h = gated_reference(gate_up, activation)
    return h if out is None else out.copy_(h)


def gated_backward_(dh: Tensor, gate_up: Tensor, activation: Activation) -> None:
    """In place: `gate_up` (T, 2 F) becomes (dgate | dup) and `dh` (T, F) becomes h."""
    if _triton_can(gate_up, dh):
        from topcoat.kernels.triton_ops import gated as fused

        return fused.gated_backward_(dh, gate_up, activation)
    library = _native(gate_up, dh)
    if library is not None:
        library.gated_backward(*_arguments(gate_up, dh, activation))
        return
    settle()
    h, dgate_up = gated_backward_reference(dh, gate_up, activation)
    dh.copy_(h)
    gate_up.copy_(dgate_up)


def _triton_can(gate_up: Tensor, h: Tensor | None) -> bool:
    halves = gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0
    return halves and triton_can(gate_up, beside=((h, (len(gate_up), gate_up.shape[1] // 2)),))


def _native(gate_up: Tensor, h: Tensor | None) -> Library | None:
    library = native_for(gate_up)
    if library is None or gate_up.dim() != 2 or gate_up.shape[1] % 2:
        return None
    if h is None or (h.dtype == gate_up.dtype and h.shape == (len(gate_up), gate_up.shape[1] // 2) and native_for(h)):
        return library
    return None


def _arguments(gate_up: Tensor, h: Tensor, activation: Activation) -> tuple[int, ...]:
    size = torch.get_num_threads(), gate_up.dtype == torch.bfloat16, *h.shape, ACTIVATIONS.index(activation)
    return *size, gate_up.data_ptr(), gate_up.stride(0), h.data_ptr(), h.stride(0)
