"""Who is measured: each contender is a worker module and the settings it runs with.

    topcoat-POLICY    load_model, attach, the hand-written blocks with this recompute policy, the product's own loop;
                      -graphs: its micro batches as CUDA graphs
    peft-...          a plain loop over transformers and PEFT, in bf16 or float32, with and without checkpointing
    trl-...           SFTTrainer, in bf16
    unsloth-...       Unsloth's patched model in SFTTrainer, on a GPU

Whether the frozen weights are bf16 or NF4 is the workload's, not the contender's. TRL 1.16 has one memory-saving loss
(`nll`; `chunked_nll` is a deprecated name of the same code), so its sweep is over packing and checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Side = Literal["topcoat", "peers", "unsloth"]


@dataclass(frozen=True)
class Contender:
    """One way to compute the same training step."""

    name: str
    side: Side
    """Which environment it runs in."""
    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What it computes in, which says how near the reference it has to come."""

    @property
    def is_ours(self) -> bool:
        """True for Topcoat."""
        return self.side == "topcoat"

    def policies(self, layers: int, facts: dict[str, Any]) -> list[str]:
        """What each layer computes again, for counting operations."""
        found: list[str] = facts.get("policies") or []
        return found or ["all" if self.settings.get("checkpointing") else "none"] * layers


def _ours(recompute: str, dtype: Literal["bf16", "fp32"] = "bf16", *, graphs: bool = False) -> Contender:
    name = f"topcoat-{recompute}" + ("-fp32" if dtype == "fp32" else "") + ("-graphs" if graphs else "")
    settings = {"recompute": recompute, "dtype": dtype, "graphs": graphs}
    return Contender(name, "topcoat", "bench.ours", settings, dtype)


def _peft(name: str, *, autocast: bool = False, checkpointing: bool = False, layout: str = "packed") -> Contender:
    dtype: Literal["bf16", "fp32"] = "fp32" if "fp32" in name else "bf16"
    settings = {"dtype": dtype, "autocast": autocast, "checkpointing": checkpointing, "layout": layout}
    return Contender(name, "peers", "bench.peft_loop", settings, dtype)


def _trl(name: str, *, packing: bool = False, checkpointing: bool = False) -> Contender:
    return Contender(name, "peers", "bench.trl_trainer", {"packing": packing, "checkpointing": checkpointing})


def _unsloth(name: str, checkpointing: bool | str) -> Contender:
    settings = {"packing": True, "checkpointing": checkpointing, "unsloth": True}
    return Contender(name, "unsloth", "bench.trl_trainer", settings)


REFERENCE = _peft("reference-fp32", layout="documents")
"""What the gates compare with: float32, one document at a time. Never timed."""

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        *(_ours(policy) for policy in ("none", "mlp", "qkv", "block", "auto", "offload")),
        _ours("none", "fp32"),
        _ours("none", graphs=True),
        _peft("peft-bf16", layout="padded"),
        _peft("peft-bf16-ckpt", layout="padded", checkpointing=True),
        _peft("peft-autocast", layout="padded", autocast=True),
        _peft("peft-autocast-ckpt", layout="padded", autocast=True, checkpointing=True),
        _peft("peft-fp32", layout="padded"),
        _peft("peft-fp32-ckpt", layout="padded", checkpointing=True),
        _peft("peft-bf16-packed"),
        _peft("peft-autocast-packed", autocast=True),
        _peft("peft-autocast-packed-ckpt", autocast=True, checkpointing=True),
        _trl("trl"),
        _trl("trl-ckpt", checkpointing=True),
        _trl("trl-packed", packing=True),
        _trl("trl-packed-ckpt", packing=True, checkpointing=True),
        _unsloth("unsloth-default", "unsloth"),
        _unsloth("unsloth-no-ckpt", False),
    )
}
