"""Micro batches by graphs: a shape is launched, captured, held to the launches, and from then on replayed.

A graph that has kept a number which should have changed (a border, a label, a parameter) gives wrong gradients and no
error. So a capture is not believed: it has to give, on PROOFS micro batches of its shape, the loss and the gradient
that launches give on the very same tensors, the second time with parameters that an update has changed. Until then the
launches' answer is used; where the two differ, or something cannot be captured, graphs are given up and the run goes
on by launches, over the same padded batches.

A buffer that has moved since a capture (kernels/moves.py) makes every graph worthless: all go at once, and shapes begin
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from topcoat.data.batches import Batch
from topcoat.kernels.graph import Capture
from topcoat.kernels.moves import moves
from topcoat.training.halving import first_line, is_out_of_memory
from topcoat.training.objectives.sft import target_positions
from topcoat.training.optimizers.trained import Flat
from topcoat.training.static_batch import StaticBatch, StaticShape, shape_of

PROOFS = 2
"""Micro batches that a graph must get right before it is used."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 3e-2
"""|difference| / |value|, of each parameter's gradient in the Euclidean norm. Room for bf16 and for FlashAttention's
backward, which adds in any order; how much they need is not measured. A stale tensor moved the gradient of a tiny model
by 0.17 to 2.0 (tests/training/test_replay.py)."""
SMALL_SHARE = 1e-3
"""A parameter whose gradient is a smaller share of the whole than this is held to that share: it is mostly rounding."""
MOST_GRAPHS = 24
"""Shapes that are captured; others are launched. A graph holds some kilobytes for each launch."""


@dataclass
class _Shape:
    """What is known of the batches of one shape."""

    batch: StaticBatch
    loss: Tensor
    """() float32, where launches and graph leave it."""
    launches: int = 0
    """Micro batches computed so. The first makes every buffer and kernel that a capture must find."""
    graph: Callable[[], None] | None = None
    proofs: int = 0
    proved_at: tuple[float, float] | None = None
    """Sum and norm of the parameters at the newest proof."""


class Replay:
    """Adds the gradient of a micro batch to that of `trained`, by graphs where they are proved."""

    def __init__(
        self,
        loss: Callable[[StaticBatch], Tensor],
        trained: Flat,
        budget_tokens: int,
        capture: Capture,
        say: Callable[[str], None],
    ) -> None:
        self._loss, self._trained, self._capture, self._say = loss, trained, capture, say
        self._budget_tokens = budget_tokens
        self._shapes: dict[StaticShape, _Shape] = {}
        self._moves = moves()
        self.given_up: str | None = None
        """Why no graph is used any more."""
        self.launched = self.replayed = 0
        """Micro batches computed either way."""

    def __call__(self, batch: Batch, factor: float) -> Tensor:
        """Adds the gradient of factor * loss(batch) of a packed batch; -> the loss, a float32 scalar."""
        if self._moves != moves() and self._captured():
            self.forget()
        self._moves = moves()
        shape = self._prepare(batch, factor)
        if shape.proofs >= PROOFS and shape.graph is not None:
            shape.graph()
            self.replayed += 1
        elif batch.n_target_tokens and self._may_prove(shape):
            self._prove(shape)
        else:
            self._launch(shape)
        return shape.loss.clone()

    def forget(self) -> None:
        """Let go of every graph and its memory; shapes begin again."""
        self._shapes.clear()
        self._capture.forget()

    def describe(self) -> str:
        """How the micro batches so far were computed."""
        return f"CUDA graphs: {self.replayed:,} of {self.replayed + self.launched:,} micro batches were replayed"

    def _prepare(self, batch: Batch, factor: float) -> _Shape:
        """The batch in the tensors of its shape."""
        targets = target_positions(batch)
        key = shape_of(batch, len(targets[0]), self._budget_tokens)
        if key not in self._shapes:
            device = self._trained.device
            self._shapes[key] = _Shape(StaticBatch(key, device), torch.zeros((), device=device))
        self._shapes[key].batch.fill(batch, targets, factor)
        return self._shapes[key]

    def _may_prove(self, shape: _Shape) -> bool:
        if self.given_up is not None or not shape.launches:
            return False
        if shape.graph is None:
            return self._captured() < MOST_GRAPHS
        return shape.proved_at != self._parameters()  # a second proof wants parameters that an update has changed

    def _parameters(self) -> tuple[float, float]:
        return float(self._trained.values.sum()), float(self._trained.values.norm())

    def _captured(self) -> int:
        return sum(shape.graph is not None for shape in self._shapes.values())

    def _launch(self, shape: _Shape, *, may_wait: bool = True) -> None:
        with self._capture.aside() if may_wait else self._capture.without_waits():
            self._compute(shape)
        shape.launches += 1
        self.launched += 1

    def _compute(self, shape: _Shape) -> None:
        """What is launched, and what is captured."""
        loss = self._loss(shape.batch)
        (loss * shape.batch.factor).backward()
        shape.loss.copy_(loss.detach())

    def _prove(self, shape: _Shape) -> None:
        """Launches give the answer; the graph, captured now if there is none, has to give it too."""
        gradients = self._trained.gradients
        before = gradients.clone()
        try:
            self._launch(shape, may_wait=False)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._give_up(f"a micro batch cannot be captured: {first_line(error)}")
            gradients.copy_(before)
            self._launch(shape)
            return
        answer, loss = gradients.clone(), shape.loss.clone()
        try:
            if shape.graph is None:
                shape.graph = self._capture.capture(lambda: self._compute(shape))
            shape.loss.zero_()
            gradients.copy_(before)
            shape.graph()
            if bool(torch.isfinite(loss)) and bool(torch.isfinite(answer).all()):  # else nothing is proved
                self._judge(shape, loss, answer, before)
        except RuntimeError as error:
            self._give_up(f"a micro batch cannot be captured: {first_line(error)}")
        gradients.copy_(answer)
        shape.loss.copy_(loss)

    def _judge(self, shape: _Shape, loss: Tensor, answer: Tensor, before: Tensor) -> None:
        """Count a proof, or give graphs up."""
        of_loss = float((shape.loss - loss).abs() / loss.abs().clamp(min=1e-12))
        name, of_gradient = self._furthest(answer - before, self._trained.gradients - answer)
        if not (of_loss <= LOSS_TOLERANCE and of_gradient <= GRADIENT_TOLERANCE):
            self._give_up(f"a graph's loss is off by {of_loss:.1e}, the gradient of {name} by {of_gradient:.1e}")
        else:
            shape.proofs, shape.proved_at = shape.proofs + 1, self._parameters()

    def _furthest(self, gradient: Tensor, difference: Tensor) -> tuple[str, float]:
        """The parameter whose gradient (of `gradient`, (P,)) is off most, and by what share of its norm."""
        names = list(self._trained.places)
        norms, off = (
            torch.stack(torch._foreach_norm(list(self._trained.cut(vector).values())))
            for vector in (gradient, difference)
        )
        shares = off / norms.clamp(min=max(float(norms.norm()) * SMALL_SHARE, 1e-30))
        worst = int(shares.nan_to_num(nan=torch.inf).argmax())
        return names[worst], float(shares[worst])

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        for shape in self._shapes.values():
            shape.graph, shape.proofs = None, 0
        self._capture.forget()
        self._say(f"no CUDA graphs from here on ({reason}); the run goes on without them")
