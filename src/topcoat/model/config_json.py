"""config.json -> a transformers config, with no code of the repository run and everything unusable refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from topcoat.errors import TopcoatError
from topcoat.json_files import read_json_object
from topcoat.model.quantized_tensors import check_quantization

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_MOST_LAYERS = 10_000
_UNUSABLE = (
    *(StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError),
)
_SEVERAL_SENSES = ("vision_config", "audio_config", "thinker_config", "talker_config")


def read_config(folder: Path) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The config of a checkpoint directory, and the JSON it was made from.

    Raises TopcoatError for what is missing, malformed, quantized by another tool, not a causal language model, or
    possible only by running the repository's own code.
    """
    file = folder / "config.json"
    if not file.is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        what = "this is an adapter, not a model" if is_adapter else "there is no config.json here"
        raise TopcoatError(what, where=str(folder), fix="give model.path a complete Hugging Face directory")
    facts = read_json_object(file, "fetch config.json again")
    _check_kind(file, facts)
    return make_config(facts, str(file)), facts


def _check_kind(file: Path, facts: dict[str, Any]) -> None:
    model_type = facts.get("model_type")
    if not isinstance(model_type, str):
        raise TopcoatError("config.json names no model_type", where=str(file))
    if model_type not in CONFIG_MAPPING:
        mapped = facts.get("auto_map")
        named = mapped.values() if isinstance(mapped, dict) else ()  # such as "owner/repo--modeling_x.XForCausalLM"
        own_code = sorted({str(value).split("--")[-1].split(".")[0] + ".py" for value in named})
        if own_code:
            raise TopcoatError(
                f"this repository needs its own code ({', '.join(own_code)[:200]}); it is not run",
                where=str(file),
                fix="use a model whose architecture transformers has",
            )
        raise TopcoatError(
            f"transformers has no architecture {model_type[:60]!r}",
            where=str(file),
            fix="if it is new, upgrade transformers",
        )
    if facts.get("quantization_config"):
        check_quantization(facts["quantization_config"], str(file))
    several = [key for key in _SEVERAL_SENSES if key in facts]
    if several:
        raise TopcoatError(
            f"{model_type} is a multimodal model ({several[0]}); only text models are supported",
            where=str(file),
            fix="use the text-only checkpoint of this family",
        )


def make_config(facts: dict[str, Any], where: str) -> PretrainedConfig:
    """The transformers config of `facts` (its model_type is known). Raises TopcoatError if a value is impossible."""
    config_class = CONFIG_MAPPING[facts["model_type"]]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TopcoatError(
            f"{facts['model_type']} is not a causal language model", where=where, fix="use a decoder-only text model"
        )
    for key in _LAYERS:  # some classes write one entry for each before they look at the number
        if isinstance(facts.get(key), int | float) and facts[key] > _MOST_LAYERS:
            raise TopcoatError(
                f"{key} is over {_MOST_LAYERS:,}: no model has as many", where=where, fix="fetch it again"
            )
    plain = {key: value for key, value in facts.items() if key not in ("auto_map", "quantization_config")}
    try:
        return config_class.from_dict(plain)
    except _UNUSABLE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TopcoatError(f"the model config is not valid: {reason}", where=where) from error
