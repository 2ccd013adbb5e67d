"""Shapes of well-known open models, so that a plan needs no file: the numbers of each model's public config.json.

The source of a row is https://huggingface.co/REPOSITORY/blob/main/config.json (the ones under meta-llama and google ask
for a login; litgpt/config.py of Lightning-AI/litgpt has most of them beside the same links). Tests hold every row to
the published number of parameters. Of the multimodal Gemma 3 models it is the text part.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.planning.architecture import Architecture, architecture_of


@dataclass(frozen=True)
class Shape:
    """One model: config.json's numbers under shorter names."""

    repository: str
    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    context: int
    tied: bool = False
    head_dim: int | None = None
    experts: int = 0
    experts_per_token: int = 0

    @property
    def name(self) -> str:
        """llama-3.1-8b: the repository without its owner, in lower case."""
        return self.repository.split("/")[1].lower()

    @property
    def source(self) -> str:
        """Where the numbers are from."""
        return f"https://huggingface.co/{self.repository}/blob/main/config.json"

    def facts(self) -> dict[str, Any]:
        """The values of config.json that decide sizes."""
        facts: dict[str, Any] = {
            "model_type": self.kind,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp,
        }
        if self.experts:
            field = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}[self.kind]
            facts |= {field: self.experts, "num_experts_per_tok": self.experts_per_token}
            facts |= {"moe_intermediate_size": self.mlp}
        return {name: value for name, value in facts.items() if value is not None}


def _qwen3(size: str, *numbers: int, tied: bool = False) -> Shape:
    layers, hidden, heads, mlp = numbers
    return Shape(f"Qwen/Qwen3-{size}", "qwen3", layers, hidden, heads, 8, mlp, 151936, 40960, tied, 128)


SHAPES: tuple[Shape, ...] = (
    Shape("meta-llama/Llama-2-7b-hf", "llama", 32, 4096, 32, 32, 11008, 32000, 4096),
    Shape("meta-llama/Llama-2-13b-hf", "llama", 40, 5120, 40, 40, 13824, 32000, 4096),
    Shape("meta-llama/Llama-2-70b-hf", "llama", 80, 8192, 64, 8, 28672, 32000, 4096),
    Shape("meta-llama/Meta-Llama-3-8B", "llama", 32, 4096, 32, 8, 14336, 128256, 8192),
    Shape("meta-llama/Meta-Llama-3-70B", "llama", 80, 8192, 64, 8, 28672, 128256, 8192),
    Shape("meta-llama/Llama-3.1-8B", "llama", 32, 4096, 32, 8, 14336, 128256, 131072),
    Shape("meta-llama/Llama-3.1-70B", "llama", 80, 8192, 64, 8, 28672, 128256, 131072),
    Shape("meta-llama/Llama-3.1-405B", "llama", 126, 16384, 128, 8, 53248, 128256, 131072),
    Shape("meta-llama/Llama-3.2-1B", "llama", 16, 2048, 32, 8, 8192, 128256, 131072, True, 64),
    Shape("meta-llama/Llama-3.2-3B", "llama", 28, 3072, 24, 8, 8192, 128256, 131072, True, 128),
    Shape("meta-llama/Llama-3.3-70B-Instruct", "llama", 80, 8192, 64, 8, 28672, 128256, 131072),
    Shape("mistralai/Mistral-7B-v0.1", "mistral", 32, 4096, 32, 8, 14336, 32000, 32768),
    Shape("mistralai/Mistral-7B-v0.3", "mistral", 32, 4096, 32, 8, 14336, 32768, 32768),
    Shape("mistralai/Mistral-Small-24B-Base-2501", "mistral", 40, 5120, 32, 8, 32768, 131072, 32768, False, 128),
    Shape("mistralai/Mixtral-8x7B-v0.1", "mixtral", 32, 4096, 32, 8, 14336, 32000, 32768, False, None, 8, 2),
    Shape("mistralai/Mixtral-8x22B-v0.1", "mixtral", 56, 6144, 48, 8, 16384, 32000, 65536, False, None, 8, 2),
    Shape("Qwen/Qwen2.5-0.5B", "qwen2", 24, 896, 14, 2, 4864, 151936, 32768, True),
    Shape("Qwen/Qwen2.5-1.5B", "qwen2", 28, 1536, 12, 2, 8960, 151936, 131072, True),
    Shape("Qwen/Qwen2.5-3B", "qwen2", 36, 2048, 16, 2, 11008, 151936, 32768, True),
    Shape("Qwen/Qwen2.5-7B", "qwen2", 28, 3584, 28, 4, 18944, 152064, 131072),
    Shape("Qwen/Qwen2.5-14B", "qwen2", 48, 5120, 40, 8, 13824, 152064, 131072),
    Shape("Qwen/Qwen2.5-32B", "qwen2", 64, 5120, 40, 8, 27648, 152064, 131072),
    Shape("Qwen/Qwen2.5-72B", "qwen2", 80, 8192, 64, 8, 29568, 152064, 131072),
    _qwen3("0.6B", 28, 1024, 16, 3072, tied=True),
    _qwen3("1.7B", 28, 2048, 16, 6144, tied=True),
    _qwen3("4B", 36, 2560, 32, 9728, tied=True),
    _qwen3("8B", 36, 4096, 32, 12288),
    _qwen3("14B", 40, 5120, 40, 17408),
    _qwen3("32B", 64, 5120, 64, 25600),
    Shape("Qwen/Qwen3-30B-A3B", "qwen3_moe", 48, 2048, 32, 4, 768, 151936, 40960, False, 128, 128, 8),
    Shape("google/gemma-2-2b", "gemma2", 26, 2304, 8, 4, 9216, 256000, 8192, True, 256),
    Shape("google/gemma-2-9b", "gemma2", 42, 3584, 16, 8, 14336, 256000, 8192, True, 256),
    Shape("google/gemma-2-27b", "gemma2", 46, 4608, 32, 16, 36864, 256000, 8192, True, 128),
    Shape("google/gemma-3-1b-it", "gemma3_text", 26, 1152, 4, 1, 6912, 262144, 32768, True, 256),
    Shape("google/gemma-3-4b-it", "gemma3_text", 34, 2560, 8, 4, 10240, 262208, 131072, True, 256),
    Shape("google/gemma-3-12b-it", "gemma3_text", 48, 3840, 16, 8, 15360, 262208, 131072, True, 256),
    Shape("google/gemma-3-27b-it", "gemma3_text", 62, 5376, 32, 16, 21504, 262208, 131072, True, 128),
    Shape("microsoft/Phi-3-mini-4k-instruct", "phi3", 32, 3072, 32, 32, 8192, 32064, 4096),
    Shape("microsoft/Phi-3.5-mini-instruct", "phi3", 32, 3072, 32, 32, 8192, 32064, 131072),
    Shape("microsoft/Phi-3-medium-4k-instruct", "phi3", 40, 5120, 40, 10, 17920, 32064, 4096),
    Shape("microsoft/phi-4", "phi3", 40, 5120, 40, 10, 17920, 100352, 16384),
    Shape("microsoft/Phi-4-mini-instruct", "phi3", 32, 3072, 24, 8, 8192, 200064, 131072, True),
    Shape("HuggingFaceTB/SmolLM2-135M", "llama", 30, 576, 9, 3, 1536, 49152, 8192, True),
    Shape("HuggingFaceTB/SmolLM2-360M", "llama", 32, 960, 15, 5, 2560, 49152, 8192, True),
    Shape("HuggingFaceTB/SmolLM2-1.7B", "llama", 24, 2048, 32, 32, 8192, 49152, 8192, True),
    Shape("HuggingFaceTB/SmolLM3-3B", "smollm3", 36, 2048, 16, 4, 11008, 128256, 65536, True),
)

_VARIANT = re.compile(r"(-instruct|-it|-pt|-chat|-hf|-base|-v\d\.\d|-bnb-4bit|-4bit)+$")


def find_shape(name: str) -> Shape | None:
    """The row of a model's name, whoever's copy it is and whether base or instruct; None where none is meant."""
    own = _plain(name)
    exact = {_plain(shape.repository): shape for shape in SHAPES}
    if own in exact:
        return exact[own]
    return {_without_variant(plain): shape for plain, shape in reversed(exact.items())}.get(_without_variant(own))


def known_model(name: str) -> Architecture:
    """The shapes of a model by its name. Raises TopcoatError with the nearest names if it is not in the table."""
    shape = find_shape(name)
    if shape is None:
        raise unknown_model(name)
    found = architecture_of(shape.facts(), shape.repository)
    if "4bit" not in _plain(name):
        return replace(found, stored_dtype="bf16")  # or fp16, as Llama 2's are: two bytes each
    said = "the name says 4-bit weights, whose files are not here: they are counted in the recipe's format"
    return replace(found, assumed=(*found.assumed, said))


def unknown_model(name: str) -> TopcoatError:
    """No file and no row of the table is meant by `name`; the nearest names."""
    names = [shape.name for shape in SHAPES]
    near = difflib.get_close_matches(_plain(name), names, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(_plain(name).split("-")[0], [n.split("-")[0] for n in names], n=1)
    fix = f"did you mean {', '.join(near)}?" if near else f"known by name are {', '.join(names[:6])}, …"
    return TopcoatError(
        f"there is no model directory or .gguf file {name}, and it is not among the models known by name",
        "model.path",
        f"{fix} Any other model needs its config.json here",
    )


def _plain(name: str) -> str:
    return name.rstrip("/").split("/")[-1].lower().replace("_", "-").replace(" ", "-")


def _without_variant(plain: str) -> str:
    return _VARIANT.sub("", plain.removeprefix("meta-"))
