"""fp4: 4-bit floating point with a sign, two bits of exponent and one of mantissa, as bitsandbytes defines it.

The magnitudes are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1 of the block's largest weight; it is not the E2M1 of OCP.
Two codes mean zero: 0, and 8 for values from 0 to half the smallest level, as bitsandbytes' CPU code gives them.

Paper: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, where NF4 is compared with it.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from topcoat.quant.levels import LevelFormat, Levels
from topcoat.quant.settings import Fp4Config

_MAGNITUDES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_RISING = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)
"""The codes in the order of their values."""
FP4_MAP = tuple(sign * value + 0.0 for sign in (1, -1) for value in _MAGNITUDES)  # + 0.0 makes -0.0 zero
"""By code: what bitsandbytes writes as `quant_map`."""
_SORTED = torch.tensor([FP4_MAP[code] for code in _RISING], device="cpu")
FP4 = Levels(FP4_MAP, tuple(((_SORTED[:-1] + _SORTED[1:]) / 2).tolist()), _RISING)


class Fp4(LevelFormat):
    """4-bit floating point."""

    Config = Fp4Config
    tables: ClassVar = {4: FP4}
