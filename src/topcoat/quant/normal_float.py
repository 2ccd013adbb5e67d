"""nf4, nf3, nf2: 16, 8 or 4 levels at the quantiles of a normal distribution.

Papers: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3; 8 and 4 levels as in Qin et al. 2024 (IR-QLoRA),
arXiv:2402.05445, and its code.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from topcoat.kernels.nf4_dequant import NF4_TABLE
from topcoat.quant.levels import LevelFormat, Levels
from topcoat.quant.settings import LevelsConfig, Nf4Config, NormalFloatConfig

NF3_TABLE = (
    -1.0,
    -0.4786292016506195,
    -0.217141792178154,
    0.0,
    0.16093020141124725,
    0.33791524171829224,
    0.5626170039176941,
    1.0,
)
NF2_TABLE = (-1.0, -0.25256848335266113, 0.2525685131549835, 1.0)


def _nearest(table: tuple[float, ...]) -> Levels:
    """A value takes the nearest level; halfway between two it takes the lower."""
    values = torch.tensor(table, device="cpu")
    return Levels(table, tuple(((values[:-1] + values[1:]) / 2).tolist()))


NORMAL_FLOAT = {4: _nearest(NF4_TABLE), 3: _nearest(NF3_TABLE), 2: _nearest(NF2_TABLE)}
"""Bits of a code -> its levels."""


class Nf4(LevelFormat):
    """4-bit NormalFloat; the codes are bitsandbytes'."""

    Config: ClassVar[type[LevelsConfig]] = Nf4Config
    tables: ClassVar = {4: NORMAL_FLOAT[4]}


class NormalFloat(LevelFormat):
    """NormalFloat of 3 and 2 bits."""

    Config: ClassVar[type[LevelsConfig]] = NormalFloatConfig
    tables: ClassVar = {3: NORMAL_FLOAT[3], 2: NORMAL_FLOAT[2]}
