"""A stand-in for CUDA graphs on a CPU: torch's operators are written down with their tensors, and made again in order.

As in a graph, what Python decided or computed is kept as it was; addresses stand still; what a captured operator made
holds nothing until the replay; and waiting for a number is refused. Compiled code of ours is not seen, so it is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest
import torch
from native_here import native
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from topcoat.kernels import attention
from topcoat.kernels.attention import Shape, _Path
from topcoat.kernels.attention_tiled import tiled_backward, tiled_forward
from topcoat.kernels.documents import Documents, StaticDocuments, documents

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "lift_fresh"}
"""On a GPU the host would wait in these; a constant that it makes (`lift_fresh`) would be copied over."""
LEAVES_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def _refuse_waits(name: str, args: tuple) -> None:
    masked = name == "index" and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if name in WAITS or masked:
        raise RuntimeError(f"called a synchronizing operation: {name}\nlines that say more")


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        _refuse_waits(_name(func), args)
        return func(*args, **(kwargs or {}))


def _name(func) -> str:
    return func._schema.name.removeprefix("aten::")


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = _name(func)
        _refuse_waits(name, args)
        out = func(*args, **(kwargs or {}))
        if name not in LEAVES_UNWRITTEN:
            self.calls.append((func, args, kwargs or {}, [t for t in tree_leaves(out) if isinstance(t, Tensor)]))
        return out

    def replay(self) -> None:
        """Every operator again, its answer written where the first one lay."""
        with torch.no_grad():
            for func, args, kwargs, kept in self.calls:
                out = func(*args, **kwargs)
                for before, now in zip(kept, (t for t in tree_leaves(out) if isinstance(t, Tensor)), strict=True):
                    if before.data_ptr() != now.data_ptr():
                        before.copy_(now)

    def forget_answers(self) -> None:
        """What a capture was asked for has not been computed yet."""
        for _, args, kwargs, kept in self.calls:
            given = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
            for tensor in kept:
                if _memory(tensor) not in given and tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class RecordedOps:
    """A `Capture` (kernels/graph.py)."""

    def __init__(self) -> None:
        self.captures = 0

    def aside(self):
        return nullcontext()

    def without_waits(self):
        return _NoWaits()

    def forget(self) -> None:
        pass

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        with _Tape() as tape:
            compute()
        tape.forget_answers()
        return tape.replay


@torch.library.custom_op("topcoat_tests::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, scale: float, window: int) -> Tensor:
    """What FlashAttention does with borders on a device: they are read when the operator runs."""
    out = torch.empty_like(q)
    tiled_forward(q, k, v, _read(borders, len(q)), Shape(scale, window or None), out)
    return out


@torch.library.custom_op("topcoat_tests::attend_backward", mutates_args=())
def attend_backward(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, borders: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    layout, shape = _read(borders, len(q)), Shape(scale, window or None)
    out, dq, dk, dv = (torch.empty_like(x) for x in (q, q, k, v))
    saved = tiled_forward(q, k, v, layout, shape, out)
    tiled_backward(q, k, v, out, dout, saved, layout, shape, dq, dk, dv)
    return dq, dk, dv


def _read(borders: Tensor, tokens: int) -> Documents:
    ends = borders.tolist()
    return documents([(a, b - a) for a, b in pairwise(ends)], tokens)


def _forward(q, k, v, layout, shape, out):
    out.copy_(attend(q, k, v, layout.borders, shape.scale, shape.window or 0))
    return ()


def _backward(q, k, v, out, dout, saved, layout, shape, dq, dk, dv):
    found = attend_backward(q, k, v, dout, layout.borders, shape.scale, shape.window or 0)
    for into, values in zip((dq, dk, dv), found, strict=True):
        into.copy_(values)


@contextmanager
def static_attention() -> Iterator[None]:
    """Inside, attention takes borders that only the device knows, on the CPU, and compiled code is off."""
    path = _Path(lambda *args: isinstance(args[4], StaticDocuments), _forward, _backward, static=True)
    with pytest.MonkeyPatch.context() as patch, native("off"):
        patch.setitem(attention.PATHS, "static", path)
        yield
