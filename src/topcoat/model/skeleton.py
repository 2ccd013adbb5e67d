"""The model's modules without its weights: parameters on the meta device, everything else real.

`torch.empty`, which linears and embeddings take their weights from, answers on the meta device while the model is
built, so a 70B model costs nothing. What is computed (rotary frequencies, scales, masks) is computed for real, which a
model built whole on meta could not get back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from topcoat.errors import TopcoatError
from topcoat.model.families import blocks_of


class _EmptyOnMeta(TorchFunctionMode):
    """Inside this context `torch.empty` without a device allocates nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_skeleton(config: PretrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model class of `config` with its large parameters on meta, in eval mode; `config` itself is not changed.

    Raises TopcoatError if transformers cannot build it or Topcoat cannot freeze its linears.
    """
    own = copy.deepcopy(config)
    rng = torch.random.get_rng_state()
    try:
        with _EmptyOnMeta():
            model = AutoModelForCausalLM.from_config(
                own, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, ImportError) as error:
        raise TopcoatError(
            f"transformers cannot build this {config.model_type}: {' '.join(str(error).split())}",
            where="the model config",
        ) from error
    finally:
        torch.random.set_rng_state(rng)
    _check_blocks(model)
    return model.requires_grad_(False).eval()


def _check_blocks(model: PreTrainedModel) -> None:
    for name, module in blocks_of(model).named_modules():
        own = module.named_parameters(recurse=False)
        fused = [key for key, value in own if value.dim() > 2 and "expert" in f"{name}.{key}"]
        if isinstance(module, Conv1D) or fused:
            kind = "Conv1D modules" if isinstance(module, Conv1D) else f"fused expert weights ({name}.{fused[0]})"
            raise TopcoatError(
                f"{type(model).__name__} keeps its weights in {kind}, which are not supported",
                where="the model config",
                fix="use a dense model built of linear layers",
            )


def check_sizes(config: PretrainedConfig, shapes: Sequence[tuple[int, ...]], where: str) -> None:
    """Raise TopcoatError if the config speaks of a far larger model than the checkpoint holds, before it is built."""
    largest = max((n for shape in shapes for n in shape), default=0)
    facts = config.to_dict()
    limits = {"num_hidden_layers": len(shapes)} | dict.fromkeys(("hidden_size", "head_dim"), largest)
    for field, limit in limits.items():
        value = facts.get(field)
        if isinstance(value, int) and value > limit:
            found = f"{limit} tensors" if field == "num_hidden_layers" else f"no dimension above {limit}"
            raise TopcoatError(
                f"config says {field} = {value}, but the checkpoint has {found}",
                where=where,
                fix="the config and the weights are of different models; fetch both again",
            )


def parameter_groups(model: nn.Module) -> dict[str, list[str]]:
    """Every entry of the state dict -> all names it goes by, itself first; tied parameters share one entry's list."""
    by_identity: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(value), []).append(name)
    return {names[0]: names for names in by_identity.values()}
