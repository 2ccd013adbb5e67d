"""The bill as formulas: every term of a training step's memory from `Counts` and a `Setup`, one line each.

    frozen weights, quantization constants   by the number format (`quant/sizes.py`)
    embeddings and head, norms and biases    e bytes a number; the hand-written blocks keep norms in fp32 beside
    trained parameters, gradients            4 P and 4 P
    optimizer moments                        by the optimizer (`training/optimizers/sizes.py`)
    adapter's frozen matrices                4 bytes a number that is held and does not train (`trained.py`)
    importance scores                        8 bytes a number that AdaLoRA scores, two in fp32
    compute copies                           the adapters' stacked A and B in e bytes; under autocast, e bytes a weight
    saved activations                        T * (policy's numbers * e + 4 heads) a layer (`activations.py`)
    backward working set                     what all layers share, and the gradients of one micro batch, 4 P
    loss                                     5 N D e for the hidden rows before and after the last norm and what comes
                                             back through both, and a chunk of logits
    dequantization buffer                    the largest stacked weight, e bytes a number; logits use it too
    CUDA graphs                              memory of their own, where a run asks for them (`graph_bytes`)

T tokens of a micro batch, N of them that the last block computes, e bytes of the compute dtype, P trained numbers. On
the path of transformers' layers the saved activations are an estimate: e * (the linears' outputs + inputs of o_proj and
down_proj + the gated product) + 2 norms * 4 D a token and block. Engine study, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from topcoat.kernels.loss_chunks import chunk_rows_of, loss_rows
from topcoat.kernels.recompute import LADDER, LADDER_WITH_HOST, BlockSizes, Policy, choose, held_bytes, summary
from topcoat.planning.activations import kept_bytes, working_bytes
from topcoat.planning.bill import Bill, Line
from topcoat.planning.counts import BlockCounts, Counts
from topcoat.planning.process import PROCESS_BYTES, library_bytes, temporary_bytes
from topcoat.training.optimizers.sizes import SAYS, moment_bytes

ROUNDING = 0.03
"""What torch's CUDA allocator reserves above what is allocated, 2 to 3 % with expandable segments (study, 3.2)."""
CONTEXT_BYTES = 500 * 10**6
"""A CUDA context and its modules, outside torch's allocator: 0.3 to 0.55 GB by the driver (engine study, 3.2)."""


@dataclass(frozen=True)
class Setup:
    """How a run computes: what its bill depends on beside the counts."""

    tokens: int
    """T, the positions of the largest micro batch."""
    rows: int
    """N, how many of them the last block computes."""
    element_bytes: int
    """e, of the compute dtype."""
    targets: int | None = None
    """Those of them that the loss computes; all of N where that is not known."""
    policies: tuple[Policy, ...] = ()
    """One a layer from the bottom up, where the hand-written blocks compute."""
    recomputed: bool = False
    """Transformers' layers run again in the backward."""
    optimizer: str = "adamw"
    runtime_bytes: int = PROCESS_BYTES
    working_bytes: int | None = None
    """What the tokenizer and the libraries take in the process; None counts it, 0 on a device that it is not on."""
    product_bytes: int = 0
    """What the products take that oneDNN builds on a CPU (`planning/process.py`)."""
    residual_bytes: int = 0
    """What probes on this device found a plan to miss."""
    residual_note: str = ""
    workspace_bytes: int = 0
    rounding: float = 0.0
    """Share of the tensors' bytes that the device's allocator takes on top."""
    graph_bytes: int = 0
    """What captured CUDA graphs keep to themselves (`graph_bytes`)."""
    idle: bool = False
    """Leave activations and loss out: what is taken before the first token."""


def bill_of(counts: Counts, setup: Setup) -> Bill:
    """The bill of a training step."""
    e, P = setup.element_bytes, counts.trained_numbers
    dense = 0 if counts.full else 1
    scratch = counts.largest_weight() * e if counts.quantized else 0
    working = library_bytes(counts.vocab) if setup.working_bytes is None else setup.working_bytes
    lines = [
        Line("frozen weights", counts.codes_bytes, f"{sum(counts.linears.values()):,} linears" if dense else ""),
        Line("quantization constants", counts.constant_bytes, "scales and offsets"),
        Line("embeddings and head", dense * counts.embeddings * e, f"{counts.embeddings:,} numbers of {e} bytes"),
        Line("norms and biases", dense * counts.rest * (e + (4 if counts.blocks else 0)), f"{counts.rest:,} numbers"),
        Line("trained parameters", 4 * P, f"{P:,} in fp32"),
        Line("gradients", 4 * P, "fp32"),
        Line("optimizer moments", moment_bytes(setup.optimizer, counts.trained), SAYS[setup.optimizer]),
        Line("adapter's frozen matrices", 4 * counts.held, f"{counts.held:,} in fp32"),
        Line("importance scores", 8 * counts.scored, f"two in fp32 for each of {counts.scored:,}"),
        _copies(counts, e),
        *([] if setup.idle else [*activation_lines(counts, setup), _loss(counts, setup, scratch)]),
        Line("dequantization buffer", scratch, "the largest weight that one product reads" if scratch else ""),
        Line("CUDA graphs", setup.graph_bytes, "memory of their own, by formula and not by measurement"),
        Line("matrix workspace", setup.workspace_bytes, "of the GPU's matrix library"),
        Line("runtime", setup.runtime_bytes, "the process before the model"),
        Line("tokenizer and kernels", working, "what libraries take once they work"),
        Line("compiled products", setup.product_bytes, "that oneDNN builds for each number of rows"),
        Line("difference measured", setup.residual_bytes, setup.residual_note),
    ]
    if setup.rounding:
        tensors = sum(line.bytes for line in lines) - setup.runtime_bytes - working - setup.residual_bytes
        lines.append(Line("allocator's rounding", round(setup.rounding * tensors), f"{setup.rounding:.0%} of tensors"))
    return Bill(tuple(line for line in lines if line.bytes or line.name in _ALWAYS))


_ALWAYS = ("frozen weights", "trained parameters", "gradients", "optimizer moments")


def _copies(counts: Counts, e: int) -> Line:
    if counts.full and e < 4:
        numbers = sum(out * inner * times for (_, out, inner), times in counts.linears.items())
        return Line("compute copies", e * (numbers + counts.vocab * counts.hidden), f"weights in {e} bytes")
    numbers = counts.blocks.stacked if counts.blocks else 0
    return Line("compute copies", e * numbers, "the adapters' matrices, stacked")


def activation_lines(counts: Counts, setup: Setup) -> tuple[Line, Line]:
    """What waits for the backward, and what the backward works in."""
    T, e = setup.tokens, setup.element_bytes
    if counts.blocks is None:
        saved = T * (e * counts.token_numbers + 8 * counts.hidden * counts.layers)
        one = saved // max(1, counts.layers)
        kept = T * counts.hidden * e * counts.layers if setup.recomputed else saved
        note = f"{T:,} tokens" + (", blocks recomputed" if setup.recomputed else "")
        return Line("saved activations", kept, note), Line(
            "backward working set", one if setup.recomputed else 0, "one block"
        )
    blocks = counts.blocks
    sizing = blocks.sizes, blocks.ranks, setup.policies, T, setup.rows, e
    working = working_bytes(*sizing) + 4 * counts.trained_numbers
    if setup.working_bytes != 0:  # on a CPU
        working += temporary_bytes(blocks.sizes[0], T, e)
    return (
        Line("saved activations", kept_bytes(*sizing), f"{T:,} tokens, recompute {summary(setup.policies)}"),
        Line("backward working set", working, "shared by all layers, and new gradients"),
    )


def _loss(counts: Counts, setup: Setup, scratch: int) -> Line:
    e = setup.element_bytes
    most = chunk_rows_of(counts.vocab, e)
    rows = min(most, loss_rows(setup.rows if setup.targets is None else setup.targets, counts.vocab, e))
    chunk = rows * counts.vocab * e
    hidden = 5 * setup.rows * counts.hidden * e
    return Line("loss", max(0, chunk - scratch) + hidden, f"{rows} rows of {counts.vocab:,} logits at a time")


def graph_bytes(counts: Counts, setup: Setup, size: BlockSizes) -> int:
    """What graphs keep that launches give back after each layer, and what is there a second time for validation.

    Attention's answer, its gradients and its float32 sums for T tokens, the loss and the dequantization buffer once
    more, and four vectors of P numbers while a graph is proved. Counted from the code, never measured.
    """
    e = setup.element_bytes
    attention = setup.tokens * (4 * size.query + e * (2 * size.query + 2 * size.key_value))
    scratch = counts.largest_weight() * e if counts.quantized else 0
    return attention + _loss(counts, setup, 0).bytes + scratch + 4 * 4 * counts.trained_numbers


def activation_room(counts: Counts, setup: Setup, budget_bytes: float) -> float:
    """What a budget leaves for activations: less all that is there before the first token, the loss, new gradients and
    the allocator's rounding."""
    idle = bill_of(counts, replace(setup, idle=True)).peak_bytes
    scratch = counts.largest_weight() * setup.element_bytes if counts.quantized else 0
    beside = _loss(counts, setup, scratch).bytes + 4 * counts.trained_numbers
    return (budget_bytes - idle) / (1 + setup.rounding) - beside


def fitting_policies(
    blocks: BlockCounts, tokens: int, rows: int, room_bytes: float | None, element_bytes: int, on_gpu: bool
) -> list[Policy]:
    """The cheapest recompute policies whose activations fit `room_bytes`, the working set and the adapters' part
    included; nothing is recomputed where the room is not known (None), nothing waits in host memory but `on_gpu`."""
    count = len(blocks.sizes)
    if room_bytes is None:
        return ["none"] * count
    e = element_bytes
    beside = tokens * e * sum(rank.total for rank in blocks.ranks)
    best: list[Policy] = ["none"] * count
    least = math.inf
    # the working set grows once any layer recomputes, and again once one waits in host memory
    rungs: tuple[Policy, ...] = ("none", "block", "offload") if on_gpu else ("none", "block")
    for last in rungs:
        working = working_bytes(blocks.sizes, blocks.ranks, (last,) * count, tokens, rows, e)
        room = room_bytes - working - beside
        found = choose(blocks.sizes, tokens, room, e, LADDER_WITH_HOST if last == "offload" else LADDER)
        taken = working + held_bytes(blocks.sizes, found, tokens, e)
        if last == "offload" and taken >= least:  # the way to the host takes buffers too
            break
        best, least = found, taken
        if set(best) == {"none"} or (last == "block" and taken <= room_bytes - beside):
            break
    return best
