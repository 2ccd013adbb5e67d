"""Weights that calibration has rounded already: the folder in which a run keeps its integers.

The folder holds the quantized linears alone, in Topcoat's own layout. Loading takes them in place of the checkpoint's,
so that a resumed run, a merge or a chat computes with the very integers that were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from topcoat.errors import TopcoatError
from topcoat.model.safetensors_source import read_folder
from topcoat.model.source import StoredTensor
from topcoat.model.topcoat_tensors import METHOD, join_topcoat
from topcoat.quant.settings import QuantConfig, needs_rows


def open_rounded(folder: Path | None, config: QuantConfig) -> Mapping[str, StoredTensor]:
    """Parameter name -> its rounded weight; nothing where `config` needs none.

    Raises TopcoatError where it does and `folder` is not given.
    """
    if not needs_rows(config):
        return {}
    if folder is None:
        raise TopcoatError(
            "rounding gptq needs rows to calibrate on, and only a run's recipe or --calibrate names some",
            where="model.quantization.rounding",
            fix="write the checkpoint first with topcoat quantize --calibrate ROWS, and load it as format: stored",
        )
    return {tensor.name: tensor for tensor in join_topcoat(read_folder(folder), METHOD)}
