"""Checkpoints that are quantized already, by the `quant_method` of their config.json: which are read, and how.

What cannot be read is refused here, from config.json alone, before any tensor is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from topcoat.errors import TopcoatError
from topcoat.model.awq_tensors import join_awq
from topcoat.model.bitsandbytes_tensors import join_quantized
from topcoat.model.gptq_tensors import BITS, join_gptq
from topcoat.model.source import StoredTensor
from topcoat.model.topcoat_tensors import join_topcoat

Join = Callable[[Sequence[StoredTensor], Mapping[str, Any]], list[StoredTensor]]
JOINS: dict[str, Join] = {
    "bitsandbytes": lambda tensors, facts: join_quantized(tensors),
    "gptq": join_gptq,
    "awq": join_awq,
    "topcoat": join_topcoat,
}
"""quant_method -> (tensors of the file, quantization_config) to tensors with each quantized linear as one."""

ORIGINAL = "give the original checkpoint; model.quantization quantizes it while it loads"


def check_quantization(facts: Any, where: str) -> None:
    """Raises TopcoatError for a quantization_config that cannot be read, with the reason."""
    method = facts.get("quant_method", "unknown") if isinstance(facts, dict) else "unknown"
    if method not in JOINS:
        raise TopcoatError(
            f"this checkpoint was quantized by another tool ({str(method)[:60]}), which is not supported",
            where=where,
            fix=ORIGINAL,
        )
    reason = _gptq(facts) if method == "gptq" else _awq(facts) if method == "awq" else None
    if reason is not None:
        raise TopcoatError(f"this {method.upper()} checkpoint {reason}", where=where, fix=ORIGINAL)


def _gptq(facts: Mapping[str, Any]) -> str | None:
    """Why a GPTQ checkpoint cannot be read."""
    kind = facts.get("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2") or facts.get("is_marlin_format"):
        kind = "marlin" if facts.get("is_marlin_format") else kind
        return f"is packed as {str(kind)[:60]}, and only gptq and gptq_v2 are read"
    if facts.get("pack_dtype", "int32") != "int32":
        return f"is packed in {str(facts['pack_dtype'])[:60]}, and only int32 is read"
    if facts.get("bits") not in BITS:
        return f"has {facts.get('bits')!r} bits, and only {', '.join(map(str, BITS))} are read"
    return None


def _awq(facts: Mapping[str, Any]) -> str | None:
    """Why an AWQ checkpoint cannot be read."""
    version = str(facts.get("version", "gemm")).lower()
    if version != "gemm":
        return f"is packed as {version[:60]}, and only gemm is read"
    if facts.get("backend", "autoawq") != "autoawq":
        return f"was written by {str(facts['backend'])[:60]}, and only AutoAWQ's packing is read"
    bits = facts.get("bits", facts.get("w_bit"))
    if bits != 4:
        return f"has {bits!r} bits, and only 4 are read"
    if not facts.get("zero_point", True):
        return "has no zero points, and only AWQ with zero points is read"
    return None
