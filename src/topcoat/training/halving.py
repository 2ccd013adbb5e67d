"""When memory runs out: the same step once more, in micro batches of half the size.

The gradient of a step is a sum over its examples divided by one number that the split does not change, so the same step
in smaller pieces is the same step. What the failed piece has added to the gradients is thrown away first; the smaller
size stays for the rest of the run and is part of `Progress`, so that a resumed run goes on in the same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from topcoat.data.batches import Batch
from topcoat.errors import Refused
from topcoat.training.memory import free_leftovers

if TYPE_CHECKING:
    from topcoat.training.loop import Training

T = TypeVar("T")

_ALLOCATORS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "could not create a memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""What a plain RuntimeError says that is about memory: torch's CPU allocator, oneDNN's buffers, cuBLAS's workspace."""


def within_memory(
    run: Training,
    batches: Sequence[Batch],
    split: Callable[[], Sequence[Batch]],
    compute: Callable[[Sequence[Batch]], T],
) -> T:
    """`compute(batches)`, and while memory runs out again with `split()`, which gives the same rows in smaller batches.

    Raises Refused where a micro batch of one example does not fit.
    """
    while True:
        try:
            return compute(batches)
        except (MemoryError, RuntimeError) as error:
            tokens, said = half(error, batches), first_line(error)
        if run.replay is not None:
            run.replay.forget()
        free_leftovers()  # only here: until now the error's traceback held the failed piece's tensors
        run.optimizer.zero_grad()
        run.steps.limit(tokens)
        run.progress.micro_batch_tokens = tokens
        run.say(
            f"step {run.progress.step}: memory ran out ({said}); the same rows again in micro batches of at most "
            f"{tokens:,} tokens, which stays so for the rest of the run"
        )
        run.record({"step": run.progress.step, "out_of_memory": said, "micro_batch_tokens": tokens})
        batches = split()


def half(error: Exception, batches: Sequence[Batch]) -> int:
    """Half the positions of the largest of `batches`, whose computing ended in `error`.

    Raises `error` itself where it is about something else than memory, Refused where that batch is one example.
    """
    if not is_out_of_memory(error):
        raise error
    worst = max(batches, key=lambda batch: batch.input_ids.numel())
    positions = worst.input_ids.numel()
    if len(worst.rows) > 1:
        return min(positions // 2, worst.n_tokens - 1)  # below what it holds, however much of it is filling
    raise Refused(
        f"one example of {positions:,} tokens does not fit into memory by itself: {first_line(error)}",
        where="data.max_length",
        fix=f"write data.max_length: {max(8, positions // 2)} with overlong: truncate or split, "
        "train.recompute: block, or model.quantization: {format: nf4}",
    ) from error


def is_out_of_memory(error: Exception) -> bool:
    """True where an allocator, on a GPU or a CPU, had no more to give."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def first_line(error: Exception) -> str:
    """What the allocator said, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
