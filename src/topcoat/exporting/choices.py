"""What `topcoat export` writes, and in which types: words that the command line checks before torch is imported."""

from __future__ import annotations

from topcoat.errors import TopcoatError

TARGETS: dict[str, str] = {
    "gguf": "base and adapter as one file for llama.cpp, Ollama and LM Studio",
    "gguf-lora": "the adapter alone, for llama.cpp beside a GGUF of its base",
    "peft": "the adapter as a plain LoRA of one rank and scale, for PEFT, vLLM and others",
}
"""Target -> what it is."""
FLOAT_TYPES = ("F32", "F16", "BF16")
BLOCK_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
TYPES: dict[str, tuple[str, ...]] = {
    "gguf": (*FLOAT_TYPES, *BLOCK_TYPES),
    "gguf-lora": (*FLOAT_TYPES, "Q8_0"),
    "peft": (),
}
"""Target -> the types its matrices can be stored in, from exact to small, as GGUF names them."""


def type_of(target: str, written: str | None) -> str | None:
    """The type that `written` means for `target`; None where none was written.

    Raises TopcoatError for a target or a type that is none.
    """
    where = "topcoat export"
    if target not in TARGETS:
        raise TopcoatError(f"{target!r} is nothing to export to", f"{where} --to", f"write one of {', '.join(TARGETS)}")
    if written is None:
        return None
    if not TYPES[target]:
        raise TopcoatError(f"--type {written} belongs to gguf and gguf-lora", where, f"leave it out with --to {target}")
    if written.upper() not in TYPES[target]:
        listed = ", ".join(kind.lower() for kind in TYPES[target])
        near = " (K types are llama.cpp's own: export f16 and run llama-quantize)" if "K" in written.upper() else ""
        raise TopcoatError(f"--type {written} is none that --to {target} writes", where, f"write {listed}{near}")
    return written.upper()
