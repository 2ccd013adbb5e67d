"""Tensors into safetensors shards as they come, holding one shard in memory: model.safetensors, or numbered ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from topcoat.files import write_new
from topcoat.training.tensor_file import on_host, pieces

SHARD_BYTES = 2 * 10**9  # what hubs and servers are used to; also the memory that writing takes


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Write (name, tensor) pairs into `folder` in their order; returns tensor name -> file name.

    One shard is called model.safetensors; several are model-00001-of-0000N.safetensors with
    model.safetensors.index.json beside them, as transformers reads them.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0
    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > shard_bytes:
            shards.append(_write(held, folder, len(shards)))
            held, held_bytes = {}, 0
        held[name] = tensor.contiguous()
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write(held, folder, len(shards)))
    files: dict[str, str] = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        (folder / f"part-{number}").rename(folder / final)  # how many there are is known only now
        files |= dict.fromkeys(names, final)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def _write(tensors: dict[str, Tensor], folder: Path, number: int) -> list[str]:
    write_new(folder / f"part-{number}", pieces(on_host(tensors)))
    return list(tensors)
