"""One model from base and adapter, in a Hugging Face directory, called done only after its logits are proved.

The directory is written beside its final name, loaded again from disk, and compared with base + adapter on held-out
prompts; only if every logit is within rounding is it renamed into place (pitfalls P43, P49, P51).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.data.render import Renderer
from topcoat.errors import TopcoatError
from topcoat.exporting.companions import write_companions
from topcoat.exporting.integer_model import QUANTIZATION, dtype_beside, integer_tensors, keeps_integers
from topcoat.exporting.labels import label_logits_of, prove_labels
from topcoat.exporting.merged import merged_tensors, output_dtype
from topcoat.exporting.proof import Proof, compare, logits_of
from topcoat.exporting.shards import write_shards
from topcoat.files import publish_directory, write_file
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.dense import NAMES
from topcoat.quant.settings import DenseConfig, StoredConfig

FINER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.bfloat16: (torch.float16, torch.float32),
    torch.float16: (torch.float32,),
    torch.float32: (),
}
"""Dtypes that hold smaller changes of a weight, the smallest first."""


def merge_model(
    base: Base, adapters: Adapters, out: Path, prompts: Sequence[Sequence[int]], say: Callable[[str], None]
) -> Proof:
    """Write the merged model to `out` (not there yet) and prove it on `prompts` of token ids.

    `base` should compute in float32, so that what is compared is the merge and not the rounding of activations.
    Raises Refused, with nothing left behind, when the logits differ by more than rounding; TopcoatError for virtual
    tokens, which are no change of weights.
    """
    adapters.require_weights("merged model")
    if not prompts:
        raise TopcoatError("there are no prompts to prove the merge on", fix="give at least one, as token ids")
    base.model.eval()
    return publish_model(base, adapters, out, prompts, f"the merged model in {out}", say, "merge_proof.json")


def publish_model(
    base: Base,
    adapters: Adapters,
    out: Path,
    prompts: Sequence[Sequence[int]],
    name: str,
    say: Callable[[str], None],
    proof_file: str | None = None,
) -> Proof:
    """Write base + adapter to `out` and prove it on `prompts`, in the checkpoint's dtype or else in a finer one.

    An update that is small beside its weights is lost in bf16 in part: it falls between two numbers, and the nearer one
    is the old weight. Where that shows in the logits, float16 is tried, then float32. Raises Refused, naming `name`,
    with nothing left behind, when no dtype holds what was trained.
    """
    expected = outputs_of(base, prompts)
    kept = keeps_integers(base, adapters)
    own = dtype_beside(base) if kept else output_dtype(base)
    for dtype in (own, *(() if kept else FINER[own])):
        is_last = kept or not FINER[dtype]
        try:
            with publish_directory(out) as temporary:
                say("writing the integers as they were trained" if kept else f"writing {NAMES[dtype]} weights")
                write_model(base, adapters, temporary, dtype)
                say(f"proving it on {len(prompts)} held-out prompts")
                proof = prove(temporary, expected, base, prompts, dtype, StoredConfig() if kept else None)
                if not proof.holds and not is_last:
                    raise _TooCoarse
                proof.require(name)
                if proof_file is not None:
                    write_file(temporary / proof_file, json.dumps(proof.as_json(), indent=2) + "\n")
            return proof
        except _TooCoarse:
            say(f"{NAMES[dtype]} is too coarse for what was trained: the logits are off by {proof.relative_error:.1e}")
    raise AssertionError("the last dtype is proved or refused")


class _TooCoarse(Exception):
    """The dtype does not hold what was trained, and a finer one may."""


def outputs_of(base: Base, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What is proved: the logits (T, V) of each prompt, or what the head of labels says of it (1, K)."""
    return logits_of(base.model, prompts) if base.head is None else label_logits_of(base.model, prompts)


def prove(
    folder: Path,
    expected: Sequence[Tensor],
    base: Base,
    prompts: Sequence[Sequence[int]],
    dtype: torch.dtype,
    stored: StoredConfig | None = None,
) -> Proof:
    """Load the model in `folder`, whose floats are `dtype`, from disk and compare its logits with the `expected` ones,
    computed by `base`."""
    if base.head is not None:
        return prove_labels(folder, expected, prompts, dtype)
    settings = ModelSettings(
        path=str(folder),
        quantization=stored or DenseConfig.model_validate({"format": NAMES[dtype]}),
        compute_dtype="fp32",
        device=base.settings.device,
        attention=base.settings.attention,
    )
    return compare(expected, logits_of(load_model(settings).model, prompts), dtype)


def write_model(base: Base, adapters: Adapters, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Weights, config, tokenizer, template and licence of base + adapter, into the existing `folder`.

    Without `dtype` floats are written as most of the checkpoint is.
    """
    kept = keeps_integers(base, adapters)
    dtype = dtype or (dtype_beside(base) if kept else output_dtype(base))
    write_shards((integer_tensors if kept else merged_tensors)(base, adapters, dtype), folder)
    config = base.source.config.to_dict()
    config.pop("quantization_config", None)
    if kept:
        config["quantization_config"] = dict(QUANTIZATION)
    config |= {"dtype": str(dtype).removeprefix("torch."), "architectures": [base.identity.architecture]}
    config |= base.head.config() if base.head is not None else {}
    write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    write_companions(base.source, base.tokenizer, folder, Renderer(base.tokenizer).template)
