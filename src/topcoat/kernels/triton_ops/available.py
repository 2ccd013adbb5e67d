"""May a Triton kernel take these tensors? Asked without importing triton, which CUDA builds of torch bring along.

A device is tried once, with a kernel of a few numbers: Triton compiles its launcher with the machine's C compiler, and
a machine that lacks one, or whose GPU is too old, gets the plain definitions and one line that says so. Under
TRITON_INTERPRET=1 (set before the first import of triton) the kernels run on CPU tensors, slowly: that is for tests.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from topcoat.kernels.native.calls import settle

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read and write; they compute in float32."""

log = logging.getLogger(__name__)


def triton_can(x: Tensor, *alike: Tensor | None, beside: Sequence[tuple[Tensor | None, tuple[int, ...]]] = ()) -> bool:
    """Does a kernel take x, the tensors `alike` with its shape, and those `beside` it with the shapes given?

    All must be on one GPU that runs Triton (or interpreted, on the CPU), in DTYPES, every row in one piece, and nothing
    that autograd follows. A tensor that is not there (None) asks for nothing. Whatever is not exactly as promised goes
    the plain way, where torch says what is wrong with it: a kernel would read beyond its end.
    """
    device = x.device
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return False
    for tensor, shape in (*((t, x.shape) for t in (x, *alike)), *beside):
        if tensor is not None and not (tensor.shape == shape and tensor.device == device and _is_plain(tensor)):
            return False
    if device.type == "cpu":
        settle()  # the interpreter touches numbers as torch does
        return True
    return works_on(device)


def _is_plain(tensor: Tensor) -> bool:
    whole = tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return tensor.dtype in DTYPES and whole and not (tensor.requires_grad and torch.is_grad_enabled())


def interpreted() -> bool:
    """Is triton here, and in its interpreter?"""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


@cache
def works_on(device: torch.device) -> bool:
    """Compiles and runs a small kernel on `device`, once in the life of the process."""
    if find_spec("triton") is None:
        return False
    from triton.errors import TritonError

    from topcoat.kernels.triton_ops.adamw import square_sum

    try:
        return square_sum(torch.ones(4, device=device)).item() == 4.0
    except (TritonError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("the Triton kernels do not run on %s, plain torch serves: %s", device, reason)
        return False
