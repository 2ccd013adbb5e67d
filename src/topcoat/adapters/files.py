"""The PEFT adapter directory, written and read strictly.

    adapter_config.json        what PEFT, vLLM and others read
    adapter_model.safetensors  base_model.model.<path>.lora_A.weight (R, I), .lora_B.weight (O, R), float32
    topcoat.json               identity of the base, tokenizer and template it was trained with

Names and keys: PEFT 0.21, `LoraConfig` and `get_peft_model_state_dict`. Reading is strict both ways: a tensor too many
or too few is an error, never a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from topcoat.adapters.attach import Adapters, place
from topcoat.adapters.limits import GROUP
from topcoat.adapters.loftq import require_same_formats
from topcoat.adapters.peft_config import CONFIG, peft_config, read_peft_config
from topcoat.adapters.qalora import from_peft, narrowed
from topcoat.adapters.settings import LoraConfig, PromptConfig, QaloraConfig, TargetedConfig
from topcoat.adapters.virtual_tokens import NAME as VIRTUAL_TOKENS
from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.files import write_file
from topcoat.json_files import read_json_object

OUTER, PREFIX = "base_model.", "base_model.model."
WEIGHTS, IDENTITY = "adapter_model.safetensors", "topcoat.json"


def save_adapter(adapters: Adapters, folder: Path, base_name: str, identity: Mapping[str, str] | None = None) -> None:
    """Write the PEFT directory into the existing `folder`, then read it back and compare every byte of every tensor.

    Raises Refused when what is on disk is not what is in memory.
    """
    tensors = adapter_tensors(adapters)
    config = peft_config(adapters, base_name)
    write_file(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_file(folder / WEIGHTS, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    pooled = {GROUP: adapters.config.qalora_group_size} if isinstance(adapters.config, QaloraConfig) else {}
    bound = {"only_on": adapters.only_on} if adapters.only_on else {}
    if identity is not None or bound or pooled:
        stated = {"format": 1, **(identity or {}), **bound, **pooled}
        write_file(folder / IDENTITY, json.dumps(stated, indent=2, sort_keys=True) + "\n")
    on_disk = _read_tensors(folder / WEIGHTS)
    lost = [name for name, t in tensors.items() if name not in on_disk or not torch.equal(on_disk[name], t)]
    if lost or len(on_disk) != len(tensors):
        raise Refused(
            f"the saved adapter has {len(on_disk)} of {len(tensors)} tensors as they are in memory",
            where=str(folder / WEIGHTS),
            fix=f"the disk or the file system lost data; first difference: {lost[0] if lost else 'a tensor too many'}",
        )


def adapter_tensors(adapters: Adapters) -> dict[str, Tensor]:
    """What goes into the file, by PEFT's names, float32 on the CPU, sorted."""
    named: dict[str, Tensor] = {}
    for path, layer in adapters.layers.items():
        named |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in layer.stored().items()}
    named |= _beside(adapters) | _shared(adapters)
    if adapters.prompt is not None:
        named |= adapters.prompt.stored()
    return {name: named[name].detach().float().cpu().contiguous() for name in sorted(named)}


def _slots(adapters: Adapters) -> dict[str, Tensor]:
    """What the file's tensors are read into, by their names there."""
    slots: dict[str, Tensor] = {}
    for path, layer in adapters.layers.items():
        slots |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in layer.slots().items()}
    if adapters.prompt is not None:
        slots |= adapters.prompt.slots()
    return slots | _beside(adapters) | _shared(adapters)


def _shared(adapters: Adapters) -> dict[str, Tensor]:
    """What all layers have in common, behind the name of PEFT's outer module only."""
    return {f"{OUTER}{name}": tensor for name, tensor in adapters.shared().items()}


def _beside(adapters: Adapters) -> dict[str, Tensor]:
    """What trains beside the layers: whole modules and rows of the embedding."""
    inside = tuple(f"{path}." for path in (*adapters.layers, VIRTUAL_TOKENS))
    prefix = PREFIX if adapters.prompt is None else OUTER  # PEFT puts no model of its own around one with tokens
    return {f"{prefix}{n}": p for n, p in adapters.parameters().items() if not n.startswith(inside)}


def load_adapter(model: nn.Module, folder: Path, identity: Mapping[str, str] | None = None) -> Adapters:
    """Attach the adapter in `folder` to `model`, ready to compute and to train on.

    `identity` is the base's own; where the folder records another, loading is refused with both named. Raises
    TopcoatError for a broken directory, Refused for another base or tensors that do not fit.
    """
    check_identity(folder, identity)
    config, stored = _as_trained(read_peft_config(folder), _read_tensors(folder / WEIGHTS), folder)
    adapters = place(model, config, None)
    try:
        adapters.only_on = _only_on(folder)
        if adapters.only_on:
            bases = {path: layer.base for path, layer in adapters.layers.items()}
            require_same_formats(bases, adapters.only_on, str(folder / IDENTITY))
        load_tensors(adapters, stored, str(folder / WEIGHTS))
    except TopcoatError:
        adapters.detach()
        raise
    return adapters


def _as_trained(
    config: TargetedConfig | PromptConfig, stored: dict[str, Tensor], folder: Path
) -> tuple[TargetedConfig | PromptConfig, dict[str, Tensor]]:
    """Settings and tensors of the file; of a QA-LoRA's plain LoRA as those of the QA-LoRA it was trained as."""
    if not isinstance(config, LoraConfig):
        return config, stored
    values = read_json_object(folder / CONFIG, "copy it again")
    if values.get("use_qalora"):
        return config, from_peft(values, stored, folder)
    path = folder / IDENTITY
    group = read_json_object(path, "copy it again").get(GROUP) if path.is_file() else None
    if group is None or config.method != "lora":
        return config, stored
    settings = config.model_dump(exclude={"method"}) | {GROUP: group}
    try:
        trained = QaloraConfig.model_validate(settings)
    except ValidationError as error:
        raise TopcoatError(f"{GROUP} is {repr(group)[:60]}, no size of a group", str(path), "copy it again") from error
    return trained, narrowed(stored, trained.qalora_group_size, str(folder / WEIGHTS))


def _only_on(folder: Path) -> dict[str, str]:
    """The number formats that the adapter in `folder` is bound to, by path."""
    path = folder / IDENTITY
    stated = read_json_object(path, "copy it again").get("only_on", {}) if path.is_file() else {}
    if not isinstance(stated, dict):
        raise TopcoatError(f"only_on is {repr(stated)[:60]}, and names no formats", str(path), "copy it again")
    return {str(key): str(value) for key, value in stated.items()}


def load_tensors(adapters: Adapters, stored: Mapping[str, Tensor], where: str) -> None:
    """Copy the file's tensors into the attached parameters: same names, same shapes, finite."""
    expected = _slots(adapters)
    extra = sorted(stored.keys() - expected.keys())
    redrawn = {name for name in _shared(adapters) if name not in stored}  # from the generator's key in the settings
    missing = sorted(expected.keys() - stored.keys() - redrawn)
    wrong = [n for n, p in expected.items() if n in stored and stored[n].shape != p.shape]
    problems = []
    if extra:
        problems.append(
            Problem(f"{len(extra)} tensors in the adapter match nothing in this model, first {extra[0]}", where)
        )
    if missing:
        problems.append(Problem(f"{len(missing)} tensors this model expects are absent, first {missing[0]}", where))
    if wrong:
        name = wrong[0]
        sizes = f"{tuple(stored[name].shape)} in the file, {tuple(expected[name].shape)} here"
        problems.append(Problem(f"{len(wrong)} tensors have another shape, first {name}: {sizes}", where))
    bad = [name for name, tensor in stored.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        problems.append(Problem(f"{len(bad)} tensors hold NaN or infinity, first {bad[0]}", where))
    if problems:
        error = Refused.gather(problems)
        raise error
    with torch.no_grad():
        for name, tensor in stored.items():
            expected[name].copy_(tensor)


BOUND_TO = {
    "base": "base model",
    "config": "model config",
    "tokenizer": "tokenizer",
    "chat_template": "chat template",
}
"""Parts of an identity that must be the same for an adapter to mean what it was trained to."""


def check_identity(folder: Path, identity: Mapping[str, str] | None) -> None:
    """Refuse an adapter trained on another base, tokenizer or template than `identity` says."""
    path = folder / IDENTITY
    if identity is None or not path.is_file():
        return
    recorded = read_json_object(path, "copy it again")
    for key, noun in BOUND_TO.items():
        mine, its = identity.get(key), recorded.get(key)
        if mine and its and mine != its:
            raise Refused(
                f"the adapter was trained with another {noun}: {recorded.get('source', 'unknown')} ({its[:12]}), "
                f"this is {identity.get('source', 'unknown')} ({mine[:12]})",
                where=str(path),
                fix=f"load it on the {noun} it was trained with",
            )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, read into memory first: a mapped file that shrinks would kill the process."""
    if not path.is_file():
        raise TopcoatError(
            f"{path.parent} has no {path.name}",
            where=str(path.parent),
            fix="copy the whole adapter directory; a .bin file is a pickle and is not read",
        )
    data = path.read_bytes()
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise TopcoatError(
            f"{path.name} is no complete safetensors file: {error} ({len(data):,} bytes found)",
            where=str(path),
            fix="the copy is incomplete or damaged; copy it again",
        ) from error
