"""Micro batches by graphs: a shape is launched, captured, held to the launches, and from then on replayed.

A graph that has kept a number which should have changed (a border, a label, a learning rate) gives wrong gradients and
no error. So a capture is not believed: it has to give, on PROOFS micro batches of its shape, the loss and the gradient
that launches give on the very same tensors. Until then the launches' answer is used; where the two differ, or nothing
can be captured, graphs are given up and the run goes on by launches, over the same padded batches, with the same bits.

A buffer that has moved since (kernels/moves.py) makes every graph worthless; its shape begins again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.data.batches import Batch
from topcoat.kernels.graph import Capture
from topcoat.kernels.moves import moves
from topcoat.training.objectives.sft import target_positions
from topcoat.training.static_batch import StaticBatch, StaticShape, shape_of

PROOFS = 2
"""Micro batches that a graph must get right: on the first it was captured, on the second all values are new."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 1e-2
"""|difference| / |value|, of the gradient in the Euclidean norm. FlashAttention's backward adds in any order, which
moves bf16 gradients by 1e-3 or so; a stale label or border moves them by a tenth and more."""
MOST_GRAPHS = 24
"""Shapes kept; the one that was not met for longest goes first. A graph holds some kilobytes for each launch."""


@dataclass
class _Known:
    """What is known of one shape."""

    batch: StaticBatch
    loss: Tensor
    """() float32, where launches and graph leave it."""
    graph: Callable[[], None] | None = None
    moves: int = -1
    """When it was captured."""
    proofs: int = 0
    launched: bool = False
    """Once, so that a capture finds every buffer and kernel made."""


class Replay:
    """Adds the gradient of a micro batch to the parameters', by graphs where they are proved."""

    def __init__(
        self,
        loss: Callable[[StaticBatch], Tensor],
        gradients: Tensor,
        budget_tokens: int,
        capture: Capture,
        say: Callable[[str], None],
    ) -> None:
        self._loss, self._capture, self._say = loss, capture, say
        self._gradients = gradients  # (P,): every parameter's `.grad` is a view into it
        self._budget_tokens = budget_tokens
        self._known: OrderedDict[StaticShape, _Known] = OrderedDict()
        self.given_up: str | None = None
        """Why no graph is used any more."""
        self.launched = self.replayed = 0
        """Micro batches computed either way."""

    def __call__(self, batch: Batch, factor: float) -> Tensor:
        """Adds the gradient of factor * loss(batch) of a packed batch; -> the loss, a float32 scalar."""
        known = self._of(batch)
        known.batch.fill(batch, factor)
        if known.graph is not None and known.moves != moves():
            self._begin_again(known)
        if known.graph is not None and known.proofs >= PROOFS:
            known.graph()
            self.replayed += 1
        elif self.given_up or not known.launched or not batch.n_target_tokens:
            self._launch(known)
        else:
            self._prove(known)
        return known.loss.clone()

    def forget(self) -> None:
        """Let go of every graph and its memory; shapes begin again."""
        self._known.clear()

    def _of(self, batch: Batch) -> _Known:
        shape = shape_of(batch, len(target_positions(batch)[0]), self._budget_tokens)
        known = self._known.get(shape)
        if known is None:
            device = self._gradients.device
            known = self._known[shape] = _Known(StaticBatch(shape, device), torch.zeros((), device=device))
            if len(self._known) > MOST_GRAPHS:
                self._known.popitem(last=False)
        self._known.move_to_end(shape)
        return known

    def _begin_again(self, known: _Known) -> None:
        known.graph, known.proofs, known.launched = None, 0, False

    def _launch(self, known: _Known) -> None:
        with self._capture.aside():
            self._compute(known)
        known.launched = True
        self.launched += 1

    def _compute(self, known: _Known) -> None:
        """What is launched, and what is captured."""
        loss = self._loss(known.batch)
        (loss * known.batch.factor).backward()
        known.loss.copy_(loss.detach())

    def _prove(self, known: _Known) -> None:
        """Launches give the answer; the graph, captured now if there is none, has to give it too."""
        before = self._gradients.clone()
        self._launch(known)
        answer, loss = self._gradients.clone(), known.loss.clone()
        if known.graph is None:
            at = moves()
            try:
                known.graph = self._capture.capture(lambda: self._compute(known))
            except RuntimeError as error:
                self._give_up(f"a micro batch cannot be captured: {str(error).splitlines()[0]}")
            known.moves = moves()
            if known.moves != at:  # a buffer was made inside the capture: its memory is the graph's
                self._begin_again(known)
        if known.graph is not None:
            known.loss.zero_()
            self._gradients.copy_(before)
            known.graph()
            self._judge(known, loss, answer, before)
        self._gradients.copy_(answer)
        known.loss.copy_(loss)

    def _judge(self, known: _Known, loss: Tensor, answer: Tensor, before: Tensor) -> None:
        """Count a proof, or give graphs up. A loss that is not finite proves nothing."""
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(answer).all()):
            return
        of_loss = float((known.loss - loss).abs() / loss.abs().clamp(min=1e-12))
        of_gradient = float((self._gradients - answer).norm() / (answer - before).norm().clamp(min=1e-12))
        if of_loss <= LOSS_TOLERANCE and of_gradient <= GRADIENT_TOLERANCE:
            known.proofs += 1
        else:
            self._give_up(f"a graph's loss is off by {of_loss:.1e} and its gradient by {of_gradient:.1e}")

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        for known in self._known.values():
            self._begin_again(known)
        self._say(f"no CUDA graphs from here on ({reason}); the run goes on by launches, with the same results")
