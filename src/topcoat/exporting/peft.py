"""An adapter for programs that read PEFT directories: a plain LoRA of one rank and scale wherever it is one.

AdaLoRA, IEC, MiSS and QA-LoRA become the LoRA that computes the same; ranks and scales by linear become one rank, with
zeros, and scale 1, because vLLM ignores both patterns. What is no LoRA (DoRA, VeRA, IA3, virtual tokens) is written in
PEFT's own form of it. The directory is loaded again onto the base, and its logits are those of the trained adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from topcoat.adapters.as_lora import as_lora, is_lora
from topcoat.adapters.attach import Adapters
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.data.render import Renderer
from topcoat.errors import TopcoatError
from topcoat.exporting.companions import write_companions
from topcoat.exporting.labels import write_head_config
from topcoat.exporting.merge import outputs_of
from topcoat.exporting.proof import Proof, compare
from topcoat.files import publish_directory, write_file
from topcoat.model.load import Base

PROOF = "peft_proof.json"


@dataclass(frozen=True)
class PeftExport:
    """What was written and how it was proved."""

    folder: Path
    rank: int | None
    """Of the plain LoRA; None where the method is none."""
    proof: Proof
    warnings: tuple[str, ...] = ()
    """What a program that reads it must know, and cannot tell from the files."""

    def as_json(self) -> dict[str, Any]:
        """All figures and the verdict."""
        found = {"file": str(self.folder), "rank": self.rank, "warnings": list(self.warnings)}
        return found | self.proof.as_json()


def export_peft(
    base: Base, adapters: Adapters, out: Path, prompts: Sequence[Sequence[int]], say: Callable[[str], None]
) -> PeftExport:
    """Write the PEFT directory `out`, with tokenizer and template beside it.

    Afterwards the model carries the adapter as it was read back. Raises Refused, with nothing left behind, when it does
    not compute what was trained.
    """
    if not prompts:
        raise TopcoatError("there are no prompts to prove the files on", fix="give at least one, as token ids")
    base.model.eval()
    expected = outputs_of(base, prompts)
    plain = as_lora(adapters, pad=True) if is_lora(adapters) else None
    identity = base.identity.model_dump()
    warnings = _warnings(adapters)  # before it is taken off
    with publish_directory(out) as folder:
        rank = plain.config.model_dump()["r"] if plain is not None else None
        say(f"writing {adapters.config.method}" if plain is None else f"writing a LoRA of rank {rank} and scale 1")
        save_adapter(plain or adapters, folder, base.settings.path, identity)
        write_companions(base.source, base.tokenizer, folder, Renderer(base.tokenizer).template, generation=False)
        if base.head is not None:
            write_head_config(base, folder)
        say(f"proving it on {len(prompts)} held-out prompts")
        adapters.detach()
        load_adapter(base.model, folder, identity)
        proof = compare(expected, outputs_of(base, prompts), torch.float32)
        proof.require(f"the adapter in {out}")
        done = PeftExport(out, rank, proof, warnings)
        write_file(folder / PROOF, json.dumps(done.as_json(), indent=2) + "\n")
    for warning in warnings:
        say(f"warning: {warning}")
    return done


def _warnings(adapters: Adapters) -> tuple[str, ...]:
    """What PEFT and vLLM do wrong without a word: they put what repairs a rounding on weights without that rounding."""
    if not adapters.only_on:
        return ()
    formats = ", ".join(sorted(set(adapters.only_on.values())))
    return (
        f"the adapter repairs the rounding of its base ({formats}): PEFT and vLLM must load it on the base rounded the "
        "same way, because on its unrounded weights, or in another format, it adds an error instead of removing one; "
        "topcoat merge writes a model that needs no such care",
    )
