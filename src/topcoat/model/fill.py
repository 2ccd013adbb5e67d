"""Weights into a skeleton, one tensor in memory at a time: read, hash, check, quantize, drop.

Strict both ways, and before anything is read: a tensor that fits nowhere and a parameter that gets nothing are errors,
except for the few copies and caches that older files are known to carry. Peak memory is the finished model plus one
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.errors import Problem, TopcoatError
from topcoat.model.families import family_of
from topcoat.model.identity import TensorHasher
from topcoat.model.joined import JoinedTensor
from topcoat.model.skeleton import parameter_groups
from topcoat.model.source import Source, StoredTensor, as_bytes
from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.dense import DTYPES
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.formats import make_format
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.overrides import formats_by_path, override_of, require_one_way
from topcoat.quant.settings import QuantConfig, StoredConfig, storage

# Caches and masks that old files carry and current models compute: never weights.
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$|\.attn\.(masked_)?bias$")
# Two spellings of one module over transformers' history; the second is the one fingerprints use.
_SPELLINGS = (("embed_out.", "lm_head."),)
_SHOWN = 5


@dataclass(frozen=True)
class _Place:
    """One tensor and where it goes: all names of a parameter, the first of which is the parameter's own."""

    stored: StoredTensor
    names: tuple[str, ...]
    is_copy: bool
    """A tied parameter that an earlier tensor of the file has filled already."""


def fill(
    model: PreTrainedModel,
    source: Source,
    config: QuantConfig,
    dtype: torch.dtype,
    device: torch.device,
    rounded: Mapping[str, StoredTensor] | None = None,
) -> str:
    """Fill `model` from `source`: linears inside the blocks become FrozenLinear as `config` says, the rest is dense.

    `rounded` has weights that were quantized before, by calibration, under the parameters' names: they are taken as
    they lie, and the checkpoint's own are only hashed. Returns the SHA-256 of the checkpoint's tensors. Raises
    TopcoatError listing everything that does not fit.
    """
    places = match_all(model, source)
    outside = named_outside(model, config, places)
    linears = {**block_linears(model), **outside}
    formats = formats_of(linears, config, places, outside)
    rounded = rounded or {}
    hasher = TensorHasher()
    digests: dict[str, str] = {}
    weights: dict[str, QuantizedWeight] = {}
    for place in places:
        own = place.names[0]
        raw = place.stored.raw()
        key = f"{own} (copy)" if place.is_copy else _fingerprint_name(own)
        digest = hasher.add(key, place.stored.stored_dtype, place.stored.shape, as_bytes(raw))
        if place.is_copy:
            hasher.forget(key)
            _check_copy(place, digest.result(), digests[own])
        elif own.removesuffix(".weight") in linears and own.endswith(".weight"):
            format, ready = formats[own.removesuffix(".weight")], rounded.get(own)
            if ready is None:
                weights[own] = _quantize(place.stored, raw, format, device)
            else:
                weights[own] = _quantize(ready, ready.raw(), format, device)
        else:
            assign(model, place, read_dense(place.stored, raw, dtype).to(device))
        digests.setdefault(own, digest.result())
        del raw
    owner = {name: place.names[0] for place in places for name in place.names}
    for name, module in linears.items():
        weight = weights[owner[f"{name}.weight"]]  # a tied head and embedding share theirs
        if isinstance(module, nn.Embedding):
            frozen: nn.Module = FrozenEmbedding(weight, formats[name], dtype)
        else:
            frozen = FrozenLinear(weight, formats[name], None if module.bias is None else module.bias.data, dtype)
        model.set_submodule(name, frozen.eval())
    return hasher.digest()


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linears inside the decoder blocks, by their dotted path in the model."""
    blocks = family_of(model).blocks
    found = model.get_submodule(blocks).named_modules(prefix=blocks)
    return {name: module for name, module in found if isinstance(module, nn.Linear)}


def named_outside(
    model: PreTrainedModel, config: QuantConfig, places: Sequence[_Place] = ()
) -> dict[str, nn.Linear | nn.Embedding]:
    """Path -> head or embedding, where an override of `config` asks for it by its own name, or `stored` keeps one
    that is quantized in the file, as its tensor among `places` tells.

    Raises TopcoatError where the two are one weight and only one is named, or they would be stored in two ways.
    """
    family = family_of(model)
    paths = [path for path in (family.embedding, family.head) if path]
    modules = {path: model.get_submodule(path) for path in paths}
    kept = {name for place in places if isinstance(place.stored, JoinedTensor) for name in place.names}
    own = {path: config if isinstance(config, StoredConfig) and f"{path}.weight" in kept else None for path in paths}
    asked = {path: override_of(config, path) or own[path] for path in paths}
    if len(paths) == 2 and modules[paths[0]].weight is modules[paths[1]].weight:
        require_one_way(paths, list(asked.values()))
    found: dict[str, nn.Linear | nn.Embedding] = {}
    for path, module in modules.items():
        if asked[path] is None:
            continue
        if type(module) not in (nn.Linear, nn.Embedding):  # Gemma 3's embedding multiplies what it looks up
            raise TopcoatError(
                f"{path} is a {type(module).__name__}, which does more than multiply or look up, and stays as it is",
                where="model.quantization.overrides",
                fix="leave it out of the overrides",
            )
        assert isinstance(module, nn.Linear | nn.Embedding)
        found[path] = module
    return found


def formats_of(
    linears: Mapping[str, nn.Linear | nn.Embedding],
    config: QuantConfig,
    places: Sequence[_Place] = (),
    outside: Collection[str] = (),
) -> dict[str, QuantFormat]:
    """Path -> the format of each linear; `stored` is what its tensor among `places` has.

    `outside` are those that are no linears of the blocks: overrides must name them. Raises TopcoatError naming the
    linears whose shape does not fit theirs.
    """
    formats = formats_by_path(config, linears, outside)
    forms = {name: place.stored.form() for place in places for name in place.names}
    made: dict[str, QuantFormat] = {}
    refused: dict[Problem, list[str]] = {}
    for path, module in linears.items():
        form = forms.get(f"{path}.weight")
        if isinstance(formats[path].config, StoredConfig) and form is not None:
            formats[path] = made.setdefault(form.model_dump_json(), make_format(form))
        if form is not None and storage(form) == storage(formats[path].named):
            continue  # taken as it lies, which its reader has checked
        try:
            formats[path].check_shape(*module.weight.shape)
        except TopcoatError as error:
            refused.setdefault(error.problems[0], []).append(path)
    if refused:
        said = [replace(problem, what=f"{problem.what}: {_some(paths)}") for problem, paths in refused.items()]
        raise TopcoatError.gather(said)
    return formats


def match_all(model: PreTrainedModel, source: Source) -> list[_Place]:
    """Where every tensor goes. Raises TopcoatError with all that is left over, missing or of another shape."""
    groups = parameter_groups(model)
    owner = {name: own for own, names in groups.items() for name in names}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict(keep_vars=True).items()}
    places: list[_Place] = []
    filled: set[str] = set()
    problems: list[Problem] = []
    unknown: list[str] = []
    for stored in source.tensors():
        name = _match(stored.name, shapes, model.base_model_prefix)
        if name is None:
            if not (_is_harmless(stored.name, model) or _is_zero_bias(stored, shapes, source)):
                unknown.append(stored.name)
        elif stored.shape != shapes[name]:
            problems.append(_wrong_shape(stored, shapes[name]))
        else:
            places.append(_Place(stored, tuple(groups[owner[name]]), owner[name] in filled))
        if name is not None:
            filled.add(owner[name])
    missing = [name for name in groups if name not in filled]
    problems = _left_over(unknown, missing, model, source) + problems[:_SHOWN]
    if problems:
        raise TopcoatError.gather(problems)
    return places


def _match(name: str, known: dict[str, tuple[int, ...]], prefix: str) -> str | None:
    """The name a stored tensor has in this model, (files may leave out the decoder's prefix), or None."""
    spellings = [name]
    for one, other in _SPELLINGS:
        spellings += [other + name.removeprefix(one)] if name.startswith(one) else []
        spellings += [one + name.removeprefix(other)] if name.startswith(other) else []
    spellings += [f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]
    return next((spelling for spelling in spellings if spelling in known), None)


def _is_harmless(name: str, model: PreTrainedModel) -> bool:
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    return bool(_HARMLESS.search(name)) or any(re.search(pattern, name) for pattern in ignored)


def _is_zero_bias(stored: StoredTensor, shapes: Mapping[str, tuple[int, ...]], source: Source) -> bool:
    """Whether this is a bias of zeros that AutoGPTQ gave to a linear which has none."""
    path = stored.name.removesuffix(".bias")
    if path == stored.name or f"{path}.weight" not in shapes or not source.config_facts().get("quantization_config"):
        return False
    return not bool(stored.read().count_nonzero())


def _fingerprint_name(name: str) -> str:
    for one, other in _SPELLINGS:
        if name.startswith(one):
            return other + name.removeprefix(one)
    return name


def _left_over(unknown: list[str], missing: list[str], model: PreTrainedModel, source: Source) -> list[Problem]:
    problems = []
    kind = type(model).__name__
    if unknown:
        what = f"{len(unknown)} tensors of the checkpoint fit nowhere in {kind}: {_some(unknown)}"
        problems.append(Problem(what, str(source.path), "config and weights are of different models; fetch both again"))
    if missing:
        what = f"{len(missing)} parameters of {kind} are not in the checkpoint: {_some(missing)}"
        problems.append(Problem(what, str(source.path), "the checkpoint is incomplete, or the config another model's"))
    return problems


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _wrong_shape(stored: StoredTensor, expected: tuple[int, ...]) -> Problem:
    what = f"tensor {stored.name}: the config asks for {list(expected)}, the file has {list(stored.shape)}"
    return Problem(what, str(stored.file), "config and weights are of different models; fetch both again")


def _check_copy(place: _Place, digest: str, first: str) -> None:
    if digest != first:
        raise TopcoatError(
            f"the config ties {' and '.join(place.names)}, but the checkpoint has different values for them",
            where=str(place.stored.file),
            fix="set tie_word_embeddings to false in config.json, or fetch the checkpoint again",
        )


def _quantize(stored: StoredTensor, raw: Tensor, format: QuantFormat, device: torch.device) -> QuantizedWeight:
    """The stored form of one linear's weight, on `device`."""
    name, plain = format.config.format, DTYPES.get(format.config.format)
    packed = stored.packed(raw, format.named)
    if packed is not None:  # the file has it in this format already
        return packed.to(device)
    weight = read_dense(stored, raw, plain).to(device)
    if plain is not None:  # the values are what is stored, and are checked: quantize would only look at them again
        return QuantizedWeight(name, (weight.shape[0], weight.shape[1]), {"weight": weight.contiguous()})
    return format.quantize(weight)


def read_dense(stored: StoredTensor, raw: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor's values in `dtype` (or as stored), all finite."""
    values = stored.decode(raw, dtype)
    if values.numel():
        low, high = torch.aminmax(values)  # NaN shows in both; unlike isfinite, allocates nothing
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            bad = int(sum((~torch.isfinite(part)).sum() for part in values.flatten().split(1 << 22)))
            raise TopcoatError(
                f"tensor {stored.name}: {bad} of {values.numel()} values are not finite in {values.dtype}",
                where=str(stored.file),
                fix="the checkpoint is damaged, was saved after training diverged, or needs a wider compute dtype",
            )
    return values


def assign(model: PreTrainedModel, place: _Place, values: Tensor) -> None:
    """Put `values` under every name of its parameter, as one shared, frozen parameter (or buffer)."""
    parameter: nn.Parameter | None = None
    for name in place.names:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if attribute in module._buffers:
            module._buffers[attribute] = values
        else:
            parameter = nn.Parameter(values, requires_grad=False) if parameter is None else parameter
            module._parameters[attribute] = parameter
