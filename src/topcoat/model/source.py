"""A checkpoint on disk as a Source: its config, its tensors one at a time, its tokenizer, and what to copy.

Hugging Face directories (`safetensors_source`) and single GGUF files (`gguf_source`) both are Sources. Reading is plain
`read`, never a memory map: a file that shrinks under a map kills the process (P62), and mapped pages count as memory.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from topcoat.errors import TopcoatError
from topcoat.model.damaged import truncated
from topcoat.model.settings import HUB_ID, ModelSettings
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.settings import QuantConfig


class StoredTensor(ABC):
    """One tensor of a checkpoint: its name, form and place. Nothing is read before `raw`."""

    name: str
    """The Hugging Face name, such as model.layers.0.self_attn.q_proj.weight."""
    stored_dtype: str
    """As the file calls it: BF16, F32, Q4_1."""
    shape: tuple[int, ...]
    file: Path
    n_bytes: int

    @abstractmethod
    def raw(self) -> Tensor:
        """The stored bytes, uint8 (n_bytes,). Raises TopcoatError if the file ends too early."""

    @abstractmethod
    def decode(self, raw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The values of `raw`, shaped, in `dtype` or else in the nearest float dtype to what is stored."""

    def packed(self, raw: Tensor, wanted: QuantConfig) -> QuantizedWeight | None:
        """The weight of `raw` as the number format `wanted` stores it, where the file has that already; else None."""
        return None

    @abstractmethod
    def form(self) -> QuantConfig:
        """The number format that keeps this tensor as the file has it."""

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, read from disk now."""
        return self.decode(self.raw(), dtype)


@dataclass(frozen=True)
class License:
    """Under which terms the weights came."""

    name: str | None
    """Such as apache-2.0, as the model card or the GGUF metadata says; None where nothing is said."""
    files: tuple[Path, ...] = ()


class Source(ABC):
    """A checkpoint: what a model is made from."""

    path: Path
    config: PretrainedConfig
    license: License

    @abstractmethod
    def config_facts(self) -> Mapping[str, Any]:
        """What the file says about the architecture, as plain JSON values: the config's fingerprint is taken of it."""

    @abstractmethod
    def tensors(self) -> Sequence[StoredTensor]:
        """All tensors in file order; reading one holds only that one in memory."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as stored."""

    @abstractmethod
    def generation_defaults(self) -> Mapping[str, Any]:
        """The stored generation settings (end tokens and the like); empty where there are none."""

    @abstractmethod
    def files_to_copy(self) -> list[Path]:
        """Files that belong beside merged weights unchanged: tokenizer, template, generation settings, licence."""


def open_source(settings: ModelSettings) -> Source:
    """The checkpoint `settings.path` names: a local directory or GGUF file, else a hub id.

    Raises TopcoatError if there is no such checkpoint or it cannot be used.
    """
    from topcoat.model.gguf_source import GgufSource
    from topcoat.model.safetensors_source import DirectorySource

    path = Path(settings.path).expanduser()
    if not path.exists():
        path = _from_hub(settings)
    elif settings.revision is not None:
        raise TopcoatError(
            f"model.revision is {settings.revision!r}, but the model is a local path",
            where=str(path),
            fix="remove model.revision, or give a hub id that is not also a local path",
        )
    return DirectorySource(path) if path.is_dir() else GgufSource(path)


_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
_HUB_NEVER = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.py")


def _from_hub(settings: ModelSettings) -> Path:
    """Download (or find in the cache) the safetensors, JSON and tokenizer files of a hub id."""
    if not HUB_ID.fullmatch(settings.path):
        raise TopcoatError(
            f"no such file or directory: {settings.path}",
            where="model.path",
            fix="give a Hugging Face directory, a .gguf file, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                settings.path,
                revision=settings.revision,
                allow_patterns=list(_HUB_FILES),
                ignore_patterns=list(_HUB_NEVER),
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        revision = f" at revision {settings.revision}" if settings.revision else ""
        raise TopcoatError(
            f"the hub has no model {settings.path}{revision}, or it needs a login",
            where="model.path",
            fix="check the spelling; for a gated model accept its terms and log in with `hf auth login`",
        ) from error
    except (OSError, ValueError) as error:  # no network, offline mode, a broken cache
        raise TopcoatError(
            f"{settings.path} is not a local path, and the hub cannot be reached: {str(error).splitlines()[0]}",
            where="model.path",
            fix="connect to the network, or download the model elsewhere and give its directory",
        ) from error


def read_exactly(file: BinaryIO, path: Path, offset: int, n_bytes: int, what: str) -> Tensor:
    """`n_bytes` bytes of an open, unbuffered `file` from `offset`, uint8 (n_bytes,).

    Raises TopcoatError naming the file and both sizes if it ends too early.
    """
    out = torch.empty(n_bytes, dtype=torch.uint8)
    view = as_bytes(out)
    file.seek(offset)
    done = 0
    while done < n_bytes:
        try:
            got = file.readinto(view[done : done + (1 << 30)])  # type: ignore[attr-defined]
        except OSError as error:
            raise TopcoatError(f"{what} cannot be read: {error.strerror}", where=str(path)) from error
        if not got:
            raise truncated(path, offset + n_bytes, os.fstat(file.fileno()).st_size)
        done += got
    return out


def as_bytes(raw: Tensor) -> memoryview:
    """The memory of a uint8 CPU tensor, shared."""
    return memoryview(raw.numpy())  # type: ignore[arg-type]
