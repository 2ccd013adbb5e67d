"""One request -> its memory in every phase, its time, and whether it fits.

load     frozen weights, and one tensor as it is stored
train    the bill of a training step (`sizes.py`)
evaluate what stays of training, and the keys and values of the prompts answered at once
save     what stays of training, the adapter's file twice, and one piece of it; of full fine-tuning the model as it
         was written and the logits that prove it
merge    the base with its dense part in float32, and the merged model read back for the proof: a run of its own
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from topcoat.adapters.settings import FullConfig, PromptConfig
from topcoat.files import CHUNK_BYTES
from topcoat.kernels.recompute import Policy, summary
from topcoat.planning.bill import Bill
from topcoat.planning.counts import Counts, counts_of
from topcoat.planning.process import PROCESS_BYTES, library_bytes, product_bytes
from topcoat.planning.request import Request
from topcoat.planning.sizes import (
    CONTEXT_BYTES,
    ROUNDING,
    Setup,
    activation_room,
    bill_of,
    fitting_policies,
    graph_bytes,
)
from topcoat.planning.speed import Speed, speed_of
from topcoat.planning.trained import makes_file_tensors

PROVED_PROMPTS, PROVED_TOKENS = 8, 256
"""Prompts, and tokens of each, on which a written model is proved (`runs/session.py`)."""


@dataclass(frozen=True)
class Estimate:
    """What a request takes."""

    request: Request
    counts: Counts
    bill: Bill
    phases: dict[str, int]
    """Phase -> bytes at its peak."""
    speed: Speed
    policies: tuple[Policy, ...]
    recomputed: bool

    @property
    def peak_bytes(self) -> int:
        """The most that training, evaluating or saving takes; merging is another command."""
        return max(value for name, value in self.phases.items() if name != "merge")

    @property
    def room_bytes(self) -> int:
        """What is left of the budget; negative where it does not fit."""
        return self.request.budget_bytes - self.peak_bytes

    @property
    def fits(self) -> bool:
        """The whole run stays within the budget."""
        return self.room_bytes >= 0

    @property
    def recompute(self) -> str:
        """What is computed again, in words."""
        if self.policies:
            return summary(self.policies)
        return "block in all layers (transformers' own)" if self.recomputed else "none (transformers' layers)"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.bill.as_json(),
            "phases": self.phases,
            "peak_bytes": self.peak_bytes,
            "budget_bytes": self.request.budget_bytes,
            "room_bytes": self.room_bytes,
            "fits": self.fits,
            "micro_batch_tokens": self.request.tokens,
            "recompute": self.recompute,
            "steps": self.request.steps,
            "step_seconds": list(self.speed.step_seconds),
            "run_seconds": list(self.speed.run_seconds) if self.speed.run_seconds else None,
            "tokens_per_second": list(self.speed.tokens_per_second),
            "flops_per_step": self.speed.flops,
            "bytes_per_step": self.speed.bytes,
        }


def counts_for(request: Request) -> Counts:
    """The counts of `request`. Raises TopcoatError for an adapter that matches nothing."""
    by_hand = None if request.attention_by_hand else False
    counts = counts_of(request.architecture, request.adapter, request.stored, by_hand=by_hand)
    if request.outputs is None:
        return counts
    head = Counter({request.outputs * counts.hidden: 1})
    return replace(counts, vocab=request.outputs, trained=Counter(counts.trained) + head)


def estimate(request: Request, counts: Counts | None = None) -> Estimate:
    """Memory, time and fit of `request`; `counts` are those of `counts_for`, where they are at hand.

    Raises TopcoatError for an adapter that matches nothing.
    """
    counts = counts or counts_for(request)
    on_gpu = request.device.kind == "cuda"
    setup = Setup(
        tokens=request.tokens,
        rows=request.last_rows,
        targets=request.labelled_tokens,
        element_bytes=request.element_bytes,
        optimizer=request.train.optimizer,
        runtime_bytes=CONTEXT_BYTES if on_gpu else PROCESS_BYTES,
        working_bytes=0 if on_gpu else library_bytes(request.architecture.vocab),
        product_bytes=_products(request, counts),
        residual_bytes=request.residual_bytes,
        residual_note=request.residual_note,
        workspace_bytes=request.device.workspace_bytes if on_gpu else 0,
        rounding=ROUNDING if on_gpu else 0.0,
    )
    if on_gpu and request.train.cuda_graphs and counts.blocks is not None:
        setup = replace(setup, graph_bytes=graph_bytes(counts, setup, counts.blocks.sizes[0]))
    recomputed = counts.blocks is None and request.train.recompute not in ("auto", "none")
    policies = _policies(request, counts, setup)
    setup = replace(setup, policies=policies, recomputed=recomputed)
    bill = bill_of(counts, setup)
    return Estimate(
        request=request,
        counts=counts,
        bill=bill,
        phases=_phases(request, counts, bill),
        speed=speed_of(request, counts, policies, recomputed),
        policies=policies,
        recomputed=recomputed,
    )


def _products(request: Request, counts: Counts) -> int:
    """As a run counts them (`runs/opening.py`)."""
    if request.device.kind == "cuda":
        return 0
    ours = request.device.tiles and counts.blocks is not None
    sizes = request.tokens, request.longest, request.row_tokens, request.compute_dtype
    return product_bytes(*sizes, ours=ours, batches=request.micro_batches, packing=request.packing)


def _policies(request: Request, counts: Counts, setup: Setup) -> tuple[Policy, ...]:
    if counts.blocks is None:
        return ()
    asked = request.train.recompute
    if asked != "auto":
        return (asked,) * counts.layers
    room, on_gpu = activation_room(counts, setup, request.budget_bytes), request.device.kind == "cuda"
    return tuple(fitting_policies(counts.blocks, setup.tokens, setup.rows, room, setup.element_bytes, on_gpu))


def _phases(request: Request, counts: Counts, bill: Bill) -> dict[str, int]:
    """Bytes at the peak of each phase."""
    a, e = request.architecture, request.element_bytes
    by_name = {line.name: line.bytes for line in bill.lines}
    outside = ("runtime", "tokenizer and kernels", "matrix workspace", "difference measured")
    process = sum(by_name.get(name, 0) for name in outside)
    transient = 3 * request.last_rows * a.hidden * e  # of the loss: its chunk of logits is a buffer that stays
    if counts.blocks is None:  # autograd frees what it kept; the hand-written blocks keep their buffers
        transient += by_name.get("saved activations", 0) + by_name.get("backward working set", 0)
    if counts.full:  # autocast's copies live as long as one forward and its backward
        transient += by_name.get("compute copies", 0)
    stays = bill.peak_bytes - transient
    tensor = max(a.vocab * a.hidden, counts.largest_weight())
    # A tensor as stored (bf16) stands beside its final form: any in host memory, on a GPU only what is quantized there.
    raw = tensor if e == 4 and request.device.kind == "cpu" else counts.largest_weight()
    frozen = counts.codes_bytes + counts.constant_bytes
    dense = counts.embeddings + counts.rest
    phases = {
        "load": (4 * counts.trained_numbers if counts.full else frozen + e * dense) + 2 * raw + process,
        "train": bill.peak_bytes,
        "evaluate": stays + _answering(request) if request.answered else stays,
        "save": stays + _saving(request, counts, by_name.get("saved activations", 0)),
    }
    if not isinstance(request.adapter, FullConfig | PromptConfig):
        linears = a.linear_numbers
        base = frozen if counts.quantized else 4 * linears
        phases["merge"] = base + 2 * linears + 8 * dense + 4 * counts.file_numbers + 12 * tensor + process
    return phases


def _saving(request: Request, counts: Counts, activations: int) -> int:
    """What is written, beside all that stays; an adapter is written from host memory.

    Its file of F numbers is there twice in float32 while it is made, in place of the gradients of P that stayed; the
    tensors of some methods' files are made first, where the adapter is. A whole model is loaded again in float32, in
    place of its gradients, and proved; the C library still holds about half of what autograd kept in pieces.
    """
    a = request.architecture
    if not counts.full:
        made = 4 * counts.file_numbers if makes_file_tensors(request.adapter) else 0
        written = 8 * counts.file_numbers - 4 * counts.trained_numbers + CHUNK_BYTES
        return made + (written if request.device.kind == "cpu" else 0)
    positions = min(PROVED_TOKENS, request.longest)
    logits = 4 * a.vocab * positions  # float32: of all prompts twice, and three of one while they are compared
    left = activations // 2 if request.device.kind == "cpu" else 0
    return 4 * a.parameters - 4 * counts.trained_numbers + left + (2 * PROVED_PROMPTS + 3) * logits


def _answering(request: Request) -> int:
    """Keys and values of the prompts answered at once, one layer's twice, their forward, and their logits."""
    a, e = request.architecture, request.element_bytes
    sizes, rows = a.block_sizes, request.answered
    positions = min(a.context, request.longest + request.adapter.virtual_tokens + request.answer_tokens)
    cache = rows * positions * 2 * sizes.key_value * e
    forward = rows * request.longest * (2 * sizes.mlp + 4 * sizes.hidden + sizes.query) * e
    return cache * (a.layers + 1) + forward + rows * a.vocab * (e + 4)
