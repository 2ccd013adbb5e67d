"""An adapter as a GGUF LoRA: what llama.cpp puts on a base at run time, proved by reading it back.

    adapter.type = lora, adapter.lora.alpha = 0;   <base tensor>.lora_a (R, I),  <base tensor>.lora_b (O, R)

At run time the scale is the user's times alpha / R, or the user's alone where alpha is 0: so the method's own scale is
in B, and ranks may differ. Where GGUF permutes the rows of a base tensor (q and k of Llama), those of B are permuted
the same way; A is not.

Facts: llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topcoat.adapters.as_lora import Factors, require_factors
from topcoat.adapters.attach import Adapters, place
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.exporting.gguf_file import FLOATS, Slot, encode, write_gguf
from topcoat.exporting.gguf_layout import GgufLayout, layout_of
from topcoat.exporting.proof import Proof, compare, logits_of
from topcoat.files import publish_directory, write_file
from topcoat.model.gguf_header import read_header
from topcoat.model.gguf_source import GgufTensor
from topcoat.model.load import Base

FILE, PROOF = "adapter.gguf", "gguf_lora_proof.json"
TOLERANCES = {"F32": 1e-4, "F16": 1e-2, "BF16": 3e-2, "Q8_0": 0.1}
"""Largest |a - b| / |b| over the logits, by the type of the factors."""
LOST = {"F32": 1e-6, "F16": 2e-3, "BF16": 1e-2, "Q8_0": 3e-2}
"""The same over what the adapter adds to each weight, in float64."""
_SUFFIXES = (".lora_a", ".lora_b")


@dataclass(frozen=True)
class AdapterExport:
    """What was written and how it was proved."""

    file: Path
    type: str
    linears: int
    weight_error: float
    """|read back - trained| / |trained| of what is added to a weight, in float64; the worst linear."""
    proof: Proof

    def as_json(self) -> dict[str, Any]:
        """All figures and the verdict."""
        found = {"file": str(self.file), "type": self.type, "linears": self.linears, "weight_error": self.weight_error}
        return found | self.proof.as_json()


def export_gguf_lora(
    base: Base,
    adapters: Adapters,
    out: Path,
    wanted: str | None,
    prompts: Sequence[Sequence[int]],
    say: Callable[[str], None],
) -> AdapterExport:
    """Write the adapter as `out`/adapter.gguf, its factors in the type `wanted` (None: F32).

    Afterwards the model carries the adapter as it was read back. Raises TopcoatError for what llama.cpp does not take,
    Refused, with nothing left behind, when the file does not give back what was trained.
    """
    if not prompts:
        raise TopcoatError("there are no prompts to prove the file on", fix="give at least one, as token ids")
    _require_servable(adapters)
    layout, kind = layout_of(base.source.config), wanted or "F32"
    trained = require_factors(adapters, "gguf-lora")
    names = {path: layout.name(f"{path}.weight") for path in trained}
    base.model.eval()
    expected = logits_of(base.model, prompts)
    with publish_directory(out) as folder:
        path = folder / FILE
        say(f"writing {len(trained)} pairs of {kind} factors")
        _write(path, layout, names, trained, kind)
        say("reading every pair back")
        read = _read(path, layout, names)
        worst = _compare(trained, read, kind)
        say(f"proving it on {len(prompts)} held-out prompts")
        _put(base, adapters, read)
        proof = replace(compare(expected, logits_of(base.model, prompts), torch.float32), tolerance=TOLERANCES[kind])
        proof.require(f"the GGUF adapter in {out}")
        done = AdapterExport(out / FILE, kind, len(trained), worst, proof)
        write_file(folder / PROOF, json.dumps(done.as_json(), indent=2) + "\n")
    return done


def _require_servable(adapters: Adapters) -> None:
    """Raises TopcoatError saying everything that llama.cpp cannot put beside a base."""
    adapters.require_weights("GGUF adapter")
    fix = "merge it into the model instead: --to gguf"
    problems = []
    if adapters.copies:
        what = f"{', '.join(adapters.copies)} trained whole, and a GGUF adapter holds factors of linears only"
        problems.append(Problem(what, "adapter.modules_to_save", fix))
    if adapters.rows:
        what = "rows of the embedding trained, and a GGUF adapter holds factors of linears only"
        problems.append(Problem(what, "adapter.trainable_token_indices", fix))
    if adapters.only_on:
        stored = next(iter(adapters.only_on.values()))
        what = f"the adapter repairs the rounding of {stored}: on any other base it would add an error"
        problems.append(Problem(what, "adapter.init_lora_weights", fix))
    if problems:
        raise TopcoatError.gather(problems)


def _write(path: Path, layout: GgufLayout, names: Mapping[str, str], trained: Mapping[str, Factors], kind: str) -> None:
    slots: dict[str, Slot] = {}
    for module, pair in trained.items():
        for suffix, factor in zip(_SUFFIXES, pair, strict=True):
            slots[names[module] + suffix] = Slot((factor.shape[0], factor.shape[1]), _kind(factor.shape[1], kind))

    def encoded() -> Iterator[tuple[str, Tensor]]:
        for module, (A, B) in trained.items():
            name = names[module]
            for suffix, factor in zip(_SUFFIXES, (A, layout.rows(name, B)), strict=True):
                yield name + suffix, encode(factor.float().cpu(), slots[name + suffix].kind)

    metadata = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 0.0}
    write_gguf(path, layout.architecture, metadata, slots, encoded())


def _kind(columns: int, wanted: str) -> str:
    """The type of a factor with rows of `columns`."""
    return wanted if wanted in FLOATS or columns % 32 == 0 else "F16"


def _read(path: Path, layout: GgufLayout, names: Mapping[str, str]) -> dict[str, Factors]:
    """The factors in the file at `path`, by module, rows of B back in transformers' order."""
    entries = {entry.name: entry for entry in read_header(path).entries}

    def factor(name: str) -> Tensor:
        entry = entries[name]
        stored = GgufTensor(name, entry.type.name, entry.shape, path, entry.n_bytes, entry, layout.family, None)
        return stored.read(torch.float32)

    found: dict[str, Factors] = {}
    for module, name in names.items():
        A, B = (factor(name + suffix) for suffix in _SUFFIXES)
        found[module] = A, layout.family.restore(name, B, layout.config)
    return found


def _compare(trained: Mapping[str, Factors], read: Mapping[str, Factors], kind: str) -> float:
    """The worst relative error of B A over all linears, in float64. Raises Refused where it is no rounding."""
    worst, where = 0.0, ""
    for module, (A, B) in trained.items():
        want = B.double().cpu() @ A.double().cpu()
        found = read[module][1].double() @ read[module][0].double()
        error = float((found - want).norm() / want.norm().clamp_min(1e-300))
        if not error <= worst:  # NaN counts as the worst
            worst, where = error, module
    if not worst <= LOST[kind]:
        raise Refused(
            f"{where} reads back from the file {worst:.1e} off what was trained (at most {LOST[kind]:.0e} is rounding)",
            fix="nothing was published; run again with --debug and report it, this is a defect",
        )
    return worst


def _put(base: Base, adapters: Adapters, read: Mapping[str, Factors]) -> None:
    """The model carries `read` with scale 1 in place of `adapters`."""
    adapters.detach()
    ranks = {re.escape(module): len(A) for module, (A, _) in read.items()}
    alphas = {pattern: float(r) for pattern, r in ranks.items()}
    r = next(iter(ranks.values()))
    config = LoraConfig(target_modules=list(read), r=r, lora_alpha=float(r), rank_pattern=ranks, alpha_pattern=alphas)
    for module, layer in place(base.model, config, None).layers.items():
        assert isinstance(layer, Lora)
        layer.take(*read[module])
