"""AdaLoRA's settings in PEFT's adapter_config.json: `peft_type: ADALORA`.

The scale is lora_alpha / (init_r + 1e-5) whatever is left of the ranks; `r`, `use_rslora` and `alpha_pattern`, which
PEFT's AdaLoraConfig inherits, change nothing there. `rank_pattern` names, behind each path, which of the init_r
directions the file holds. Keys and meanings: PEFT 0.21, `AdaLoraConfig`, `AdaLoraModel.resize_modules_by_rank_pattern`.
"""

from __future__ import annotations

from typing import Any

from topcoat.adapters.adalora import SUFFIX, AdaLora
from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import AdaloraConfig, TargetedConfig

Values = dict[str, Any]

_SCHEDULE = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")


def write_adalora(adapters: Adapters) -> Values:
    """The keys of the method. A schedule that no run has filled in is written as one that PEFT accepts."""
    config = adapters.config
    assert isinstance(config, AdaloraConfig)
    tinit, tfinal = config.tinit or 0, config.tfinal or 0
    alpha = config.lora_alpha
    return {
        "init_r": config.init_r,
        "target_r": config.target_r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.lora_dropout,
        "tinit": tinit,
        "tfinal": tfinal,
        "deltaT": config.deltaT,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "orth_reg_weight": config.orth_reg_weight,
        "total_step": config.total_step or tinit + tfinal + 1,
        "rank_pattern": _pattern(adapters) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _pattern(adapters: Adapters) -> dict[str, list[bool]]:
    """Which directions are kept, of every linear; empty where all are."""
    kept = {path + SUFFIX: layer.kept.tolist() for path, layer in adapters.layers.items() if isinstance(layer, AdaLora)}
    return {} if all(all(one) for one in kept.values()) else kept


def read_adalora(values: Values) -> tuple[type[TargetedConfig], Values]:
    """The settings type and its own values."""
    own = {key: values[key] for key in _SCHEDULE if values.get(key) is not None}
    return AdaloraConfig, own | {
        "init_r": values["init_r"],
        "target_r": values["target_r"],
        "lora_alpha": values["lora_alpha"],
        "lora_dropout": values.get("lora_dropout") or 0.0,
        "rank_pattern": values.get("rank_pattern") or {},
    }
