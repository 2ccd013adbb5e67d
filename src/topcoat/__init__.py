"""Topcoat: fine-tune language models with LoRA, QLoRA and their relatives, and prove that it holds.

    import topcoat

    made = topcoat.plan("recipe.yaml")                               # will it fit, and how long; nothing is loaded
    result = topcoat.train("recipe.yaml")                            # the whole run
    base = topcoat.load("path/to/model")                            # a frozen model
    adapters = topcoat.attach(base.model, topcoat.LoraConfig(r=8))  # for people who own their loop
    topcoat.merge(result.folder)

Names are looked up when they are first used, so that `import topcoat` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topcoat.adapters.as_lora import as_lora
    from topcoat.adapters.attach import Adapters, attach
    from topcoat.adapters.files import load_adapter, save_adapter
    from topcoat.adapters.settings import (
        AdaloraConfig,
        DoraConfig,
        FullConfig,
        Ia3Config,
        IecConfig,
        LoraConfig,
        MissConfig,
        PrefixTuningConfig,
        PromptTuningConfig,
        PTuningConfig,
        PTuningV2Config,
        QaloraConfig,
        VeraConfig,
    )
    from topcoat.api import export, load, merge, train, tune
    from topcoat.data.settings import DataSettings
    from topcoat.errors import Interrupted, Refused, TopcoatError
    from topcoat.evaluation.settings import EvaluateSettings
    from topcoat.model.load import Base
    from topcoat.model.settings import ModelSettings
    from topcoat.quant.settings import (
        DenseConfig,
        Fp4Config,
        GgufConfig,
        GptqConfig,
        Int8Config,
        IntConfig,
        Nf4Config,
        NormalFloatConfig,
        NormalFloatIcqConfig,
        PluginConfig,
        StoredConfig,
    )
    from topcoat.recipe.load import load_recipe
    from topcoat.recipe.schema import Recipe
    from topcoat.runs.advising import Told, advise
    from topcoat.runs.planning import plan
    from topcoat.training.settings import TrainSettings

_WHERE = {
    "AdaloraConfig": "adapters.settings",
    "Adapters": "adapters.attach",
    "Base": "model.load",
    "DataSettings": "data.settings",
    "DenseConfig": "quant.settings",
    "DoraConfig": "adapters.settings",
    "EvaluateSettings": "evaluation.settings",
    "Fp4Config": "quant.settings",
    "FullConfig": "adapters.settings",
    "GgufConfig": "quant.settings",
    "GptqConfig": "quant.settings",
    "Ia3Config": "adapters.settings",
    "IecConfig": "adapters.settings",
    "Int8Config": "quant.settings",
    "IntConfig": "quant.settings",
    "Interrupted": "errors",
    "LoraConfig": "adapters.settings",
    "MissConfig": "adapters.settings",
    "ModelSettings": "model.settings",
    "Nf4Config": "quant.settings",
    "NormalFloatConfig": "quant.settings",
    "NormalFloatIcqConfig": "quant.settings",
    "PTuningConfig": "adapters.settings",
    "PTuningV2Config": "adapters.settings",
    "PluginConfig": "quant.settings",
    "PrefixTuningConfig": "adapters.settings",
    "PromptTuningConfig": "adapters.settings",
    "QaloraConfig": "adapters.settings",
    "Recipe": "recipe.schema",
    "Refused": "errors",
    "StoredConfig": "quant.settings",
    "Told": "runs.advising",
    "TopcoatError": "errors",
    "TrainSettings": "training.settings",
    "VeraConfig": "adapters.settings",
    "advise": "runs.advising",
    "as_lora": "adapters.as_lora",
    "attach": "adapters.attach",
    "export": "api",
    "load": "api",
    "load_adapter": "adapters.files",
    "load_recipe": "recipe.load",
    "merge": "api",
    "plan": "runs.planning",
    "save_adapter": "adapters.files",
    "train": "api",
    "tune": "api",
}

__all__ = [
    "AdaloraConfig",
    "Adapters",
    "Base",
    "DataSettings",
    "DenseConfig",
    "DoraConfig",
    "EvaluateSettings",
    "Fp4Config",
    "FullConfig",
    "GgufConfig",
    "GptqConfig",
    "Ia3Config",
    "IecConfig",
    "Int8Config",
    "IntConfig",
    "Interrupted",
    "LoraConfig",
    "MissConfig",
    "ModelSettings",
    "Nf4Config",
    "NormalFloatConfig",
    "NormalFloatIcqConfig",
    "PTuningConfig",
    "PTuningV2Config",
    "PluginConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "QaloraConfig",
    "Recipe",
    "Refused",
    "StoredConfig",
    "Told",
    "TopcoatError",
    "TrainSettings",
    "VeraConfig",
    "advise",
    "as_lora",
    "attach",
    "export",
    "load",
    "load_adapter",
    "load_recipe",
    "merge",
    "plan",
    "save_adapter",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"topcoat has no {name!r}")
    return getattr(import_module(f"topcoat.{_WHERE[name]}"), name)
