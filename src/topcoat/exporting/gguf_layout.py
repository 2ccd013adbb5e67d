"""A transformers model under GGUF's names and in GGUF's layout: what model/gguf_names.py undoes when it reads.

    llama, smollm3   rows of q and k permuted for rotary pairs (2i, 2i+1):  (H, K/2, 2) <- (H, 2, K/2)
    gemma2, gemma3   every norm weight plus 1
    gptneox          the fused q, k, v of each head regrouped:  (3, H, K) <- (H, 3, K)

Only whole rows move, so the same is done to packed blocks, to biases, and to the B (O, R) of an adapter.
Facts: llama.cpp, convert_hf_to_gguf.py (LlamaModel.permute, Gemma2Model, GPTNeoXModel).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from topcoat.errors import TopcoatError
from topcoat.model.gguf_names import GGUF_FAMILIES, GgufFamily

_ARCHITECTURES = {family.model_type: name for name, family in GGUF_FAMILIES.items()} | {"mistral": "llama"}
_PERMUTED = ("llama", "smollm3")


@dataclass(frozen=True)
class GgufLayout:
    """How the tensors of one model are named and laid out in GGUF."""

    architecture: str
    """GGUF's name for the family, such as llama."""
    family: GgufFamily
    config: PretrainedConfig

    def name(self, hf_name: str) -> str:
        """GGUF's name of the tensor that transformers calls `hf_name`. Raises TopcoatError where it has none."""
        path, _, kind = hf_name.rpartition(".")
        found = re.fullmatch(rf"{re.escape(self.family.blocks)}\.(\d+)\.(.+)", path)
        table, own = (self.family.block, found[2]) if found else (self.family.top, path)
        named = next((theirs for theirs, ours in table.items() if ours == own), None)
        if named is None or kind not in ("weight", "bias"):
            raise TopcoatError(
                f"GGUF has no place for {hf_name} in its architecture {self.architecture}",
                fix="export it for transformers and vLLM instead: topcoat merge, or --to peft",
            )
        return f"blk.{found[1]}.{named}.{kind}" if found else f"{named}.{kind}"

    def rows(self, name: str, values: Tensor) -> Tensor:
        """`values` (O, ...), rows of the tensor that GGUF calls `name`, in GGUF's order."""
        role = name.split(".")[-2]
        if self.architecture in _PERMUTED and role in ("attn_q", "attn_k"):
            heads = self.config.num_attention_heads if role == "attn_q" else self.config.num_key_value_heads
            return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(values.shape)
        if self.architecture == "gptneox" and role == "attn_qkv":
            heads = self.config.num_attention_heads
            return values.unflatten(0, (heads, 3, -1)).transpose(0, 1).reshape(values.shape)
        return values

    def values(self, name: str, values: Tensor) -> Tensor:
        """The values of that tensor as GGUF has them: its rows, and Gemma's norms plus 1."""
        if self.architecture.startswith("gemma") and name.endswith("norm.weight"):
            return values + 1
        return self.rows(name, values)


def layout_of(config: PretrainedConfig) -> GgufLayout:
    """The layout of a model of `config`. Raises TopcoatError for an architecture that is not written."""
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise TopcoatError(
            f"GGUF files of {config.model_type} models are not written",
            where="--to gguf",
            fix=f"this version writes {', '.join(_ARCHITECTURES)}; for others topcoat merge writes a Hugging Face "
            "directory, which llama.cpp's own converter may know",
        )
    return GgufLayout(architecture, GGUF_FAMILIES[architecture], config)
