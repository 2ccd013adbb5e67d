"""METHODS: every adapter method by its name. A method is a settings type in `settings.py`, a file, and a line here."""

from __future__ import annotations

from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.base import Adapter
from topcoat.adapters.dora import Dora
from topcoat.adapters.ia3 import Ia3
from topcoat.adapters.iec import Iec
from topcoat.adapters.lora import Lora
from topcoat.adapters.miss import Miss
from topcoat.adapters.qalora import Qalora
from topcoat.adapters.vera import Vera

METHODS: dict[str, type[Adapter]] = {
    "lora": Lora,
    "dora": Dora,
    "qalora": Qalora,
    "adalora": AdaLora,
    "iec": Iec,
    "ia3": Ia3,
    "vera": Vera,
    "miss": Miss,
}
