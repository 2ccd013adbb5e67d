"""All blocks of a decoder as one differentiable function: x (T, D) and the adapters' matrices -> hidden rows (N, D).

Autograd sees a single node. Inside, the forward walks the blocks and leaves in an arena what each layer's policy keeps;
the backward walks them down again. Blocks below the first adapted one run forward without keeping anything, and their
backward is not run at all, unless the input itself wants a gradient. Compiled code makes the calls of many layers at a
stroke (native/calls.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topcoat.kernels.arena import Arena
from topcoat.kernels.block import Batch, Block, Pass, block_backward, block_forward
from topcoat.kernels.moves import note_move
from topcoat.kernels.native.calls import settle, together
from topcoat.kernels.recompute import Policy


class Shelf(Protocol):
    """Where the inputs of offloaded layers wait: host memory, on a GPU."""

    def save(self, index: int, tensor: Tensor) -> None: ...

    def load(self, index: int) -> Tensor: ...


@dataclass
class Decoder:
    """The blocks of one model, the policy of each, and the buffers they compute in."""

    blocks: Sequence[Block]
    policies: list[Policy]
    device: torch.device
    make_shelf: Callable[[], Shelf] | None = None
    """Makes the host memory of the policy "offload"."""
    _free: list[Arena] = field(default_factory=list)
    """Arenas that no unfinished backward holds. One is enough unless several forwards wait for their backwards."""

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that trains, blocks from the bottom up."""
        return [p for block in self.blocks for p in block.parameters]

    def __call__(self, x: Tensor, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """x (T, D) -> (T, D), or only `rows` (N,) of it; gradients go to x and to `parameters`."""
        for block in self.blocks:
            for projection in block.projections:
                projection.derive()
                projection.refresh(x.dtype, x.device)
        parameters = self.parameters if batch.adapted else []
        training = torch.is_grad_enabled() and any(p.requires_grad for p in (x, *parameters))
        answer: Tensor = _Decoder.apply(x, self, batch, rows, training, *parameters)
        return answer

    def take_arena(self) -> Arena:
        """An arena for one forward and its backward."""
        return self._free.pop() if self._free else Arena(self.device)

    def give_back(self, arena: Arena) -> None:
        """The backward is done: the next forward may overwrite everything."""
        self._free.append(arena)

    def nbytes(self) -> int:
        """Bytes of the buffers, between a backward and the next forward."""
        return sum(arena.nbytes() for arena in self._free)


class _Decoder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, decoder: Decoder, batch: Batch, rows: Tensor | None, training: bool, *parameters: Tensor
    ) -> Tensor:
        want_x = training and ctx.needs_input_grad[0]
        arena = decoder.take_arena()
        last = len(decoder.blocks) - 1
        first = 0 if want_x else _first_adapted(decoder.blocks)
        offloads = training and "offload" in decoder.policies
        if offloads and decoder.make_shelf is None:
            raise ValueError("a layer's policy is offload, and there is no make_shelf: its input would be overwritten")
        shelf = decoder.make_shelf() if offloads and decoder.make_shelf else None
        passes = []
        hidden = x.detach()
        with _counting_losses(), together():
            for at, block in enumerate(decoder.blocks):
                kept = training and at >= first
                run = Pass(at, block, decoder.policies[at], batch, arena, rows if at == last else None, kept)
                passes.append(run)
                shape = (len(x) if run.rows is None else len(run.rows), x.shape[1])
                if at == last:
                    out = torch.empty(shape, dtype=x.dtype, device=x.device)  # leaves the arena's reach
                else:
                    out = arena.take(_name(decoder, at + 1, kept=training and at + 1 >= first), shape, x.dtype)
                block_forward(run, hidden, out)
                if shelf is not None and kept and run.policy == "offload":
                    settle()
                    shelf.save(at, hidden)
                hidden = out
        if not training:
            decoder.give_back(arena)
            return hidden
        ctx.decoder, ctx.arena, ctx.passes, ctx.first, ctx.shelf = decoder, arena, passes, first, shelf
        ctx.x = x.detach()
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        decoder, arena, x = ctx.decoder, ctx.arena, ctx.x
        if arena is None:
            raise RuntimeError("the blocks' backward overwrites what it reads and runs once; run the forward again")
        ctx.arena = None
        want_x = ctx.needs_input_grad[0]
        name = "dy" if ctx.passes[-1].rows is None else "dy.rows"
        dy: Tensor | None = arena.take(name, tuple(grads[0].shape), x.dtype).copy_(grads[0])
        collected: list[list[Tensor | None]] = []
        with _counting_losses(), together():
            for run in reversed(ctx.passes[ctx.first :]):
                need_dx = want_x or run.index > ctx.first
                inputs = x if run.index == 0 else _input(decoder, ctx.shelf, arena, run, x)
                assert dy is not None
                dy, found = block_backward(run, inputs, dy, need_dx)
                collected.append(found)
        dx = dy.clone() if want_x and dy is not None else None
        decoder.give_back(arena)
        return dx, None, None, None, None, *(g for found in reversed(collected) for g in found)


@contextmanager
def _counting_losses() -> Iterator[None]:
    """A forward or backward that fails gives no arena back: its buffers are gone, and their addresses with them."""
    try:
        yield
    except BaseException:
        note_move()
        raise


def _name(decoder: Decoder, at: int, *, kept: bool) -> str:
    """The buffer of layer `at`'s input: its own where it is kept on the device, else one of two that take turns."""
    return f"{at}.x" if kept and decoder.policies[at] != "offload" else f"x.{at % 2}"


def _input(decoder: Decoder, shelf: Shelf | None, arena: Arena, run: Pass, x: Tensor) -> Tensor:
    """Layer `run.index`'s input (T, D) as its forward left it."""
    if run.policy == "offload" and shelf is not None:
        settle()
        return shelf.load(run.index)
    return arena.take(_name(decoder, run.index, kept=True), tuple(x.shape), x.dtype)


def _first_adapted(blocks: Sequence[Block]) -> int:
    """The lowest block with something to train."""
    return next((at for at, block in enumerate(blocks) if block.parameters), len(blocks))
