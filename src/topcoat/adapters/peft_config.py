"""adapter_config.json: the settings of an adapter as PEFT writes and reads them, one pair of functions a method.

Which linears are adapted is written as what was resolved (their names, or whole paths), never as the patterns that led
there: `layers_to_transform` and `exclude_modules` are read from PEFT's files and need not be written. Ranks and alphas
are written by path wherever a layer's differ from the common ones. Keys and meanings: PEFT 0.21.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from topcoat.adapters.adalora_peft import read_adalora, write_adalora
from topcoat.adapters.attach import Adapters
from topcoat.adapters.ia3 import Ia3
from topcoat.adapters.lora import Lora
from topcoat.adapters.prompt_files import PROMPT_KINDS, PROMPT_MUST_BE, PROMPT_NEEDS, PROMPT_WRITTEN_AS
from topcoat.adapters.settings import (
    DoraConfig,
    Ia3Config,
    LoraConfig,
    MissConfig,
    PromptConfig,
    TargetedConfig,
    TokenRowsConfig,
    VeraConfig,
)
from topcoat.adapters.targets import adaptable_linears
from topcoat.errors import Problem, TopcoatError
from topcoat.json_files import read_json_object

CONFIG = "adapter_config.json"
Values = dict[str, Any]

# PEFT settings that change what an adapter computes and that this reader does not know: any other value is refused.
_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "layers_pattern": (None, [], "", "layers", ["layers"], "h", ["h"]),  # the blocks, which is what is meant without
}
_LORA = _EVERYWHERE | {
    "use_qalora": (False, None, True),  # read as the plain LoRA that computes the same: qalora.py
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    # starts that move part of the base's weights into the adapter: PEFT stores the adapter alone, which means nothing
    # on the base it names
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}

_UNMERGED = "use it with PEFT as it is: PEFT cannot merge {} either"
_TOKENS_FIX = _UNMERGED.format("virtual tokens")
_FIXES = {"alora_invocation_tokens": _UNMERGED.format("an activated LoRA")}
"""Settings of linears' adapters whose way out is no merge."""
_PROMPT_LIKE = ("MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE")

_ADALORA = _LORA | {"use_dora": (False, None), "use_qalora": (False, None)}


@dataclass(frozen=True)
class Kind:
    """One `peft_type`: how its settings are written, how they are read, and what must be at its default."""

    write: Callable[[Adapters], Values]
    read: Callable[[Values], tuple[type[TargetedConfig | PromptConfig], Values]]
    needs: tuple[str, ...]
    must_be: Mapping[str, tuple[Any, ...]]
    targeted: bool = True
    """It stands on linears, which the settings name."""


def peft_config(adapters: Adapters, base_name: str) -> Values:
    """adapter_config.json as PEFT writes it, keys at their defaults of newer PEFT versions left out."""
    config = adapters.config
    kind = WRITTEN_AS[config.method]
    written: Values = {
        "peft_type": kind,
        "task_type": "SEQ_CLS" if "score" in adapters.copies else "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "modules_to_save": sorted(adapters.copies) or None,
    }
    if KINDS[kind].targeted:
        written["target_modules"] = target_names(adapters)
    if isinstance(config, TokenRowsConfig) and config.trainable_token_indices:  # older versions do not know the key
        written["trainable_token_indices"] = list(config.trainable_token_indices)
    return written | KINDS[kind].write(adapters)


def read_peft_config(folder: Path) -> TargetedConfig | PromptConfig:
    """The settings of a PEFT directory.

    Raises TopcoatError when it is none, or uses what this version does not compute.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise TopcoatError(
            f"{folder} is no adapter: it has no {CONFIG}",
            where=str(folder),
            fix="give a PEFT directory, or a run folder's adapter/",
        )
    values = read_json_object(path, "copy it again")
    kind = KINDS.get(str(values.get("peft_type")))
    if kind is None:
        raise TopcoatError(
            f"peft_type is {str(values.get('peft_type'))[:60]!r}; this version reads {', '.join(KINDS)}",
            str(path),
            _TOKENS_FIX if values.get("peft_type") in _PROMPT_LIKE else "convert the adapter to LoRA with PEFT",
        )
    problems = [
        Problem(
            f"{key} is {repr(values[key])[:60]}, which this version does not compute",
            str(path),
            _FIXES.get(key, "merge it with PEFT instead") if kind.targeted else _TOKENS_FIX,
        )
        for key, usual in kind.must_be.items()
        if key in values and values[key] not in usual
    ]
    problems += [
        Problem(f"{path.name} lacks {key!r}", str(path), "copy the adapter again")
        for key in (*kind.needs, *(["target_modules"] if kind.targeted else []))
        if values.get(key) is None
    ]
    outside = _outside(values) if kind.targeted else []
    if outside:
        what = f"target_modules has {', '.join(outside)}, and this version adapts the linears of the blocks alone"
        fix = "merge it with PEFT, and give the merged model as model.path"
        problems.append(Problem(f"{what}, not the head or the embedding", str(path), fix))
    if problems:
        raise TopcoatError.gather(problems)
    try:
        made, own = kind.read(values)
        if issubclass(made, TokenRowsConfig):
            own = own | {"trainable_token_indices": _read_tokens(values.get("trainable_token_indices") or [])}
        return made.model_validate((_placed(values) if kind.targeted else {}) | _beside(values) | own)
    except ValidationError as error:
        first = error.errors()[0]
        raise TopcoatError(
            f"{'.'.join(map(str, first['loc']))} is {repr(first['input'])[:60]}: {first['msg']}",
            str(path),
            "copy it again",
        ) from error


def target_names(adapters: Adapters) -> list[str]:
    """Short names (q_proj) where they mean exactly the adapted linears, as vLLM wants them; whole paths elsewhere."""
    left = adaptable_linears(adapters.model)  # adapted ones end in ".base" here
    return _shortest(adapters.layers, left)


def _shortest(paths: Iterable[str], others: Iterable[str]) -> list[str]:
    """The last parts of `paths` where none of `others` ends in one; else `paths` whole."""
    short = {path.rsplit(".", 1)[-1] for path in paths}
    return sorted(paths) if short & {path.rsplit(".", 1)[-1] for path in others} else sorted(short)


def _placed(values: Values) -> Values:
    """Where the adapter stands: the same keys for every method on linears."""
    layers, excluded = values.get("layers_to_transform"), _read_targets(values.get("exclude_modules") or [])
    if isinstance(excluded, list):  # a head or an embedding is never adapted here, and need not be left out
        excluded = [name for name in excluded if not any(_is_meant([name], path) for path in _OUTSIDE)]
    return {
        "target_modules": _read_targets(values["target_modules"]),
        "exclude_modules": excluded,
        "layers_to_transform": [layers] if isinstance(layers, int) else layers or None,
    }


def _beside(values: Values) -> Values:
    """What trains beside the adapter."""
    return {"modules_to_save": _sorted(values.get("modules_to_save") or [])}


def _read_targets(targets: Any) -> Any:
    """PEFT allows one regular expression, a list, or "all-linear"."""
    if isinstance(targets, str):
        return targets if targets == "all-linear" else [targets]
    return _sorted(targets)


def _read_tokens(tokens: Any) -> Any:
    """PEFT allows a list, or one list for each of several modules; only the input embedding's rows are known here."""
    if isinstance(tokens, dict) and len(tokens) == 1 and next(iter(tokens)).rsplit(".", 1)[-1] in _EMBEDDINGS:
        return next(iter(tokens.values()))
    return tokens


_EMBEDDINGS = ("embed_tokens", "embed_in", "wte")
_OUTSIDE = ("lm_head", "embed_out", "model.embed_tokens", "gpt_neox.embed_in", "transformer.wte")
"""Heads and embeddings, as paths."""


def _outside(values: Values) -> list[str]:
    """Heads and embeddings that a file's target_modules name: PEFT adapts them too."""
    wanted, excluded = (values.get(key) or [] for key in ("target_modules", "exclude_modules"))
    return [path.rpartition(".")[2] for path in _OUTSIDE if _is_meant(wanted, path) and not _is_meant(excluded, path)]


def _is_meant(patterns: Any, path: str) -> bool:
    """Whether PEFT takes `path` for one of `patterns`: one regular expression, or a list of paths and their ends."""
    if isinstance(patterns, str):
        try:
            return patterns != "all-linear" and re.fullmatch(patterns, path) is not None
        except re.error:  # said where the patterns are used
            return False
    named = [str(name).rpartition(".")[2] for name in patterns] if isinstance(patterns, list) else []
    return path.rpartition(".")[2] in named


def _sorted(names: Any) -> Any:
    """A list of names in order; anything else as it is, for the settings to refuse."""
    return sorted(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else names


def _number(value: float) -> int | float:
    """Whole numbers as integers, as PEFT writes them."""
    return int(value) if value == int(value) else value


def _write_lora(adapters: Adapters) -> Values:
    """LORA: the common rank and alpha, and by path what differs from them."""
    config = adapters.config
    assert isinstance(config, LoraConfig)
    own = {path: layer.file_rank_alpha() for path, layer in adapters.layers.items() if isinstance(layer, Lora)}
    usual_r = Counter(r for r, _ in own.values()).most_common(1)[0][0]
    usual_alpha = Counter(alpha for _, alpha in own.values()).most_common(1)[0][0]
    return {
        "r": usual_r,
        "lora_alpha": _number(usual_alpha),
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": config.use_rslora,
        "use_dora": isinstance(config, DoraConfig),
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {path: r for path, (r, _) in own.items() if r != usual_r},
        "alpha_pattern": {path: _number(alpha) for path, (_, alpha) in own.items() if alpha != usual_alpha},
    }


def _read_lora(values: Values) -> tuple[type[TargetedConfig], Values]:
    return DoraConfig if values.get("use_dora") else LoraConfig, {
        "r": values["r"],
        "lora_alpha": values["lora_alpha"],
        "lora_dropout": values.get("lora_dropout") or 0.0,
        "use_rslora": bool(values.get("use_rslora")),
        "rank_pattern": values.get("rank_pattern") or {},
        "alpha_pattern": values.get("alpha_pattern") or {},
    }


def _write_ia3(adapters: Adapters) -> Values:
    inputs = {path for path, layer in adapters.layers.items() if isinstance(layer, Ia3) and layer.feedforward}
    # PEFT wants each feed-forward name among the targets, in the same spelling
    outputs = set(adapters.layers) - inputs
    left = [*adaptable_linears(adapters.model), *outputs]
    plain, scaled = _shortest(outputs, [*adaptable_linears(adapters.model), *inputs]), _shortest(inputs, left)
    return {
        "target_modules": sorted({*plain, *scaled}),
        "feedforward_modules": scaled,
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }


def _read_ia3(values: Values) -> tuple[type[TargetedConfig], Values]:
    return Ia3Config, {"feedforward_modules": _read_targets(values["feedforward_modules"])}


def _write_vera(adapters: Adapters) -> Values:
    config = adapters.config
    assert isinstance(config, VeraConfig)
    return {
        "r": config.r,
        "vera_dropout": config.vera_dropout,
        "d_initial": config.d_initial,
        "projection_prng_key": config.projection_prng_key,
        "save_projection": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
    }


def _read_vera(values: Values) -> tuple[type[TargetedConfig], Values]:
    own = {key: values[key] for key in ("d_initial", "projection_prng_key") if values.get(key) is not None}
    return VeraConfig, own | {"r": values["r"], "vera_dropout": values.get("vera_dropout") or 0.0}


def _write_miss(adapters: Adapters) -> Values:
    config = adapters.config
    assert isinstance(config, MissConfig)
    return {"r": config.r, "miss_dropout": config.miss_dropout, "mini_r": 1, "bias": "none", "init_weights": True}


def _read_miss(values: Values) -> tuple[type[TargetedConfig], Values]:
    return MissConfig, {"r": values["r"], "miss_dropout": values.get("miss_dropout") or 0.0}


KINDS: dict[str, Kind] = {
    "LORA": Kind(_write_lora, _read_lora, ("r", "lora_alpha"), _LORA),
    "ADALORA": Kind(write_adalora, read_adalora, ("init_r", "target_r", "lora_alpha"), _ADALORA),
    "IA3": Kind(_write_ia3, _read_ia3, ("feedforward_modules",), _EVERYWHERE),
    "VERA": Kind(_write_vera, _read_vera, ("r",), _EVERYWHERE),
    "MISS": Kind(_write_miss, _read_miss, ("r",), _EVERYWHERE | {"init_weights": (True, False, None)}),
    **{
        name: Kind(write, read, PROMPT_NEEDS, PROMPT_MUST_BE, targeted=False)
        for name, (write, read) in PROMPT_KINDS.items()
    },
}
"""What is read and written, by PEFT's name."""

WRITTEN_AS = {
    "lora": "LORA",
    "dora": "LORA",
    "qalora": "LORA",
    "adalora": "ADALORA",
    "iec": "LORA",
    "ia3": "IA3",
    "vera": "VERA",
    "miss": "MISS",
    **PROMPT_WRITTEN_AS,
}
"""Our method -> PEFT's type."""
