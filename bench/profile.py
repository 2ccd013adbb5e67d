"""Where the time of a training step goes: SmolLM2-135M, LoRA r 16 on all linears, bf16, 4 x 512 tokens, CPU.

    python -m bench.profile

Every call of the compiled library and every product of torch is timed from Python, for which calls are made one by
one. What is left of a step in which they wait for each other, as in a run, is Python itself and small operations.
Beside each part that multiplies matrices stands its floor, the seconds that its operations take at the speed of one
large product. The medians over STEPS steps are written to bench/results/profile.json, and `python -m bench.page` makes
a table of them: a share of the ceiling that is not reached is explained there.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.flops import Shape, step_flops
from bench.machine import Watch
from bench.prepare import make_model
from bench.run import ceiling, commit
from topcoat.kernels.native import calls
from topcoat.planning.machine import machine, usable_cores

ROOT = Path(__file__).parents[1]
STEPS, WARM = 9, 3
DOCUMENTS, LENGTH, RANK = 4, 512, 16
LINEARS = "frozen weights and adapters, their gradients, and the gate"
ATTENTION = "attention"
LIBRARY = {
    "projection_forward": LINEARS,
    "projection_backward": LINEARS,
    "projection_fill": "adapters' factors to bf16",
    "product": LINEARS,
    "outer": LINEARS,
    "gated": LINEARS,
    "gated_backward": LINEARS,
    "attention_forward": ATTENTION,
    "attention_backward": ATTENTION,
    "rms_norm": "norms",
    "rms_norm_backward": "norms",
    "rope": "rotary positions",
    "cross_entropy": "softmax and loss",
}
"""A function of the compiled library -> the part of a step that it is."""
HEAD, REST = "head", "Python and small operations"


class Clock:
    """Adds up the seconds of what it wraps, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.in_head = False

    def timed(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`work`, whose time counts for `part`; products inside the loss are the head's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            answer = work(*args, **kwargs)
            self.seconds[HEAD if self.in_head and part == LINEARS else part] += time.perf_counter() - began
            return answer

        return run


@contextmanager
def one_by_one() -> Iterator[None]:
    """Inside, no call waits for others."""
    before, calls.MOST = calls.MOST, 1
    try:
        yield
    finally:
        calls.MOST = before


def measure(model: str) -> dict[str, float]:
    """Median seconds of every part of a step, `step` among them."""
    import torch

    from topcoat.adapters.attach import attach
    from topcoat.adapters.settings import LoraConfig
    from topcoat.kernels.linear_cross_entropy import linear_cross_entropy
    from topcoat.kernels.native.library import native_library
    from topcoat.model.attention import attention_inputs
    from topcoat.model.fuse import fuse
    from topcoat.model.load import load_model
    from topcoat.model.settings import ModelSettings

    torch.manual_seed(0)
    base = load_model(ModelSettings(path=model, compute_dtype="bf16", device="cpu"))
    adapters = attach(base.model, LoraConfig(r=RANK))
    base.model.train()
    fused, library, clock = fuse(base.model), native_library(), Clock()
    if isinstance(fused, str) or library is None:
        raise SystemExit(f"there is nothing to profile: {fused if isinstance(fused, str) else 'no compiled library'}")
    for name, part in LIBRARY.items():
        setattr(library, name, clock.timed(getattr(library, name), part))
    torch.mm = clock.timed(torch.mm, LINEARS)
    T, vocab = DOCUMENTS * LENGTH, base.vocab_rows
    ids, targets = torch.randint(vocab, (1, T)), torch.randint(vocab, (T,))
    positions = torch.arange(LENGTH).repeat(DOCUMENTS)[None]
    spans = [(LENGTH * at, LENGTH) for at in range(DOCUMENTS)]
    head = base.model.get_output_embeddings().weight
    found: dict[str, list[float]] = defaultdict(list)

    def step() -> float:
        began = time.perf_counter()
        hidden = fused.hidden(attention_inputs(base.model, ids, positions, spans))
        clock.in_head = True
        loss = linear_cross_entropy(hidden, head, targets)
        clock.in_head = False
        (loss / T).backward()
        for parameter in adapters.parameters().values():
            parameter.grad = None
        return time.perf_counter() - began

    for turn in range(WARM + STEPS):
        seconds = step()
        clock.seconds.clear()
        with one_by_one():
            step()
        if turn >= WARM:
            parts = {**clock.seconds, REST: max(0.0, seconds - sum(clock.seconds.values())), "step": seconds}
            for part, value in parts.items():
                found[part].append(value)
    return {part: statistics.median(values) for part, values in found.items()}


def floors_s(shape: Shape, gflops: float) -> dict[str, float]:
    """Part -> the seconds of its operations at `gflops`; flops.py counts them."""
    lengths, rank, policies = [LENGTH] * DOCUMENTS, RANK, ["none"] * shape.layers
    tokens = DOCUMENTS * LENGTH
    head = 4 * shape.vocabulary * shape.hidden * tokens
    attention = 7 * shape.layers * shape.query * DOCUMENTS * LENGTH**2
    whole = step_flops(shape, lengths, tokens, rank, policies)
    found = {LINEARS: whole - head - attention, HEAD: head, ATTENTION: attention}
    return {name: operations / gflops / 1e9 for name, operations in found.items()}


def main() -> None:
    cache = ROOT / "bench" / ".cache"
    if not (cache / "models" / "smollm2-135m" / "made").exists():
        make_model("smollm2-135m", cache)
    watch = Watch.begin([os.getpid()])
    base = cache / "models" / "smollm2-135m" / "base"
    before = ceiling("cpu", usable_cores())
    parts = measure(str(base))
    gflops = max(before, ceiling("cpu", usable_cores()))
    step, floors = parts.pop("step"), floors_s(Shape.of(json.loads((base / "config.json").read_text())), gflops)
    result = {
        "says": f"SmolLM2-135M, LoRA r 16 on all linears, bf16, {DOCUMENTS} x {LENGTH} tokens, without the optimizer",
        "step_s": round(step, 4),
        "others_cores": watch.end()["other_load"],
        "commit": commit(),
        "machine": machine(ROOT, ask_torch=False).as_json(),
        "ceiling_gflops": round(gflops),
        "floors": {name: round(value, 4) for name, value in floors.items()},
        "parts": {name: round(value, 4) for name, value in sorted(parts.items(), key=lambda item: -item[1])},
    }
    text = json.dumps(result, indent=1)
    (ROOT / "bench" / "results" / "profile.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
