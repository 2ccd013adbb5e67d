"""A whole model as one GGUF file, called done only after it was read back.

Three things are held to each other before the file is published: every tensor as a reader rebuilds it against the
merged weight rounded to its type; every setting and every token as a reader takes them (gguf_metadata.py,
gguf_vocabulary.py); and the logits of the file, loaded again, against those of base and adapter. How far the last may
be apart is the type's own rounding; for integers that a QA-LoRA was trained on it is the fp16 rounding of one number in
a group.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting.gguf_file import write_gguf
from topcoat.exporting.gguf_plan import GgufPlan
from topcoat.exporting.gguf_vocabulary import require_same_tokens
from topcoat.exporting.proof import DEFECT, Proof, compare, logits_of
from topcoat.files import publish_directory, write_file
from topcoat.model.gguf_source import GgufSource
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.settings import GgufConfig

FILE, PROOF = "model.gguf", "gguf_proof.json"
TOLERANCES = {"F32": 1e-4, "F16": 1e-2, "BF16": 3e-2, "Q8_0": 0.1, "Q5_1": 0.3, "Q5_0": 0.3, "Q4_1": 0.5, "Q4_0": 0.5}
"""Largest |a - b| / |b| over the logits. 16 bits: as for a merge. Below, what the type's own rounding does to weights
that were not trained in it; more than this is no rounding."""
FINER = {"Q4_0": "q4_1, q5_1 or q8_0", "Q4_1": "q5_1 or q8_0", "Q5_0": "q5_1 or q8_0", "Q5_1": "q8_0"}
"""Type whose rounding a model may feel -> the types that round less."""
TOO_COARSE = {
    "BF16": "BF16 may lose a small update between two of its numbers: --type f16 or f32 holds it",
    **{kind: f"{kind} is too coarse for this model: --type {finer} rounds less" for kind, finer in FINER.items()},
}
"""Type -> the way out where its proof fails; `exporting/merge.py` has the reason for BF16. Every tensor was read back
as written before, so what is left of the others is their rounding: small models may not bear it."""
FEW_ALIKE = 0.9
"""Share of positions with the same likeliest token, below which such a rounding is warned of."""
EXACT = 2e-2
"""The same for Q4_1 made of the integers that were trained on."""


@dataclass(frozen=True)
class GgufExport:
    """What was written and how it was proved."""

    file: Path
    type: str
    exact: bool
    """True where the file holds the very integers that were trained on."""
    tensors: int
    texts: int
    """That the file's tokenizer encodes as the model's own."""
    n_bytes: int
    proof: Proof

    def as_json(self) -> dict[str, Any]:
        """All figures and the verdict."""
        found = {"file": str(self.file), "type": self.type, "exact": self.exact, "tensors": self.tensors}
        return found | {"texts": self.texts, "bytes": self.n_bytes} | self.proof.as_json()


def export_gguf(
    base: Base,
    adapters: Adapters,
    out: Path,
    wanted: str | None,
    prompts: Sequence[Sequence[int]],
    say: Callable[[str], None],
) -> GgufExport:
    """Write base + adapter as `out`/model.gguf (`out` is not there yet) with its matrices in the type `wanted`.

    None takes Q4_1 where the integers of a QA-LoRA allow it, else the checkpoint's own 16 bits. `base` should compute
    in float32. Raises TopcoatError for what GGUF cannot hold, and Refused, with nothing left behind, when the file does
    not give back what was written.
    """
    if not prompts:
        raise TopcoatError("there are no prompts to prove the file on", fix="give at least one, as token ids")
    adapters.require_weights("GGUF model")
    plan = GgufPlan(base, adapters, wanted)
    base.model.eval()
    expected = logits_of(base.model, prompts)
    with publish_directory(out) as folder:
        path = folder / FILE
        say(f"writing {plan.kind} weights" + (", the integers as they were trained" if plan.exact else ""))
        write_gguf(path, plan.layout.architecture, plan.metadata, plan.slots, plan.stream())
        say("reading every tensor and token back")
        source = GgufSource(path)
        _require_same_tensors(plan, source)
        texts = require_same_tokens(base.tokenizer, source.header, prompts)
        say(f"proving it on {len(prompts)} held-out prompts")
        proof = _prove(path, plan, expected, prompts)
        proof.require(f"the GGUF in {out}", DEFECT if plan.exact else TOO_COARSE.get(plan.kind, DEFECT))
        done = GgufExport(out / FILE, plan.kind, plan.exact, len(plan.slots), texts, path.stat().st_size, proof)
        write_file(folder / PROOF, json.dumps(done.as_json(), indent=2) + "\n")
        for file in base.source.license.files:
            shutil.copyfile(file, folder / file.name)
    if proof.top1_agreement < FEW_ALIKE and plan.kind in FINER and not plan.exact:
        changed = f"warning: {plan.kind} changes the likeliest token at {1 - proof.top1_agreement:.0%} of the positions"
        say(f"{changed}; --type {FINER[plan.kind]} rounds less")
    return done


def _require_same_tensors(plan: GgufPlan, source: GgufSource) -> None:
    """Raises Refused naming the first tensor that a reader of the file rebuilds as something else."""
    read = {tensor.name: tensor for tensor in source.tensors()}
    for hf, values in plan.merged():
        want, found = plan.rounded(hf, values), read[hf].read(torch.float32)
        most = 1e-6 * float(want.abs().max())  # Gemma's norms are written plus 1
        if want.shape != found.shape or not bool(((want - found).abs() <= most).all()):
            raise Refused(
                f"{hf} reads back from the file as other numbers than were written",
                fix="nothing was published; run again with --debug and report it, this is a defect",
            )


def _prove(path: Path, plan: GgufPlan, expected: Sequence[Tensor], prompts: Sequence[Sequence[int]]) -> Proof:
    """The logits of the file at `path`, loaded as it lies, against the `expected` ones."""
    settings = ModelSettings(
        path=str(path),
        quantization=GgufConfig(),
        compute_dtype="fp32",
        device=plan.base.settings.device,
        attention=plan.base.settings.attention,
    )
    found = logits_of(load_model(settings).model, prompts)
    tolerance = EXACT if plan.exact else TOLERANCES[plan.kind]
    return replace(compare(expected, found, torch.float32), tolerance=tolerance)
