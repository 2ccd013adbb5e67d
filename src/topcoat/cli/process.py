"""Process-wide choices of the verbs that compute, made in this one place and said in one line.

Called before torch or transformers are imported, since both read the environment when they are. What the user has set
stays as it is, and TOPCOAT_KEEP_ENV=1 keeps all of it.

The allocator is left as it is. Measured on two Xeon cores with AMX (torch 2.13): M_MMAP_MAX=0 saves 8 % of the CPU
time of a small training step but takes 12 % more memory, and transparent huge pages (THP_MEM_ALLOC_ENABLE) cost both.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from topcoat.errors import TopcoatError
from topcoat.planning.machine import usable_cores
from topcoat.recipe.load import load_recipe
from topcoat.recipe.named_files import looks_local, near_names
from topcoat.runs.folder import RunFolder

PATIENT_SPIN = "1000"
"""Turns a thread waits for the others before it sleeps. By default libgomp's threads spin for milliseconds, which is
best on a quiet machine and costly beside other work: they keep the core that the thread they wait for needs. Measured
on 2 cores, one training step of 2,048 tokens: on a quiet machine 1.6 s with the default and 1.8 s with 1,000; beside
two busy processes 5.8 s and 2.7 s."""
BUSY = 0.6
"""Load (processes that compute) of the last minute above which the machine is shared."""


def _is_busy() -> bool:
    try:
        return os.getloadavg()[0] > BUSY
    except OSError:  # no load is told here
        return False


def prepare_process(model: str | None, console: Console) -> dict[str, str]:
    """Set threads and library switches in the environment; `model` is the path or hub id that will be loaded, if any.

    The hub is switched off unless `model` is a hub id. Returns what was set, and prints it.
    """
    if os.environ.get("TOPCOAT_KEEP_ENV") == "1":
        console.print("process: environment kept as it is (TOPCOAT_KEEP_ENV=1)", style="dim")
        return {}
    wanted = {
        "OMP_NUM_THREADS": str(usable_cores()),  # whole cores inside the container's quota: more threads only wait
        "TOKENIZERS_PARALLELISM": "true",  # said outright, tokenizers stops guessing and warning
        "TOPCOAT_HUGE_PAGES": "on",  # asked for the buffers of a step; off refuses them
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if model is None or looks_local(model):
        wanted["HF_HUB_OFFLINE"] = "1"
    if _is_busy():
        wanted["GOMP_SPINCOUNT"] = PATIENT_SPIN
    made = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(made)
    if "OMP_NUM_THREADS" in made and "torch" in sys.modules:  # read at import: too late for the variable
        sys.modules["torch"].set_num_threads(int(made["OMP_NUM_THREADS"]))
    said = ", ".join(f"{name}={value}" for name, value in made.items()) or "nothing to set"
    console.print(f"process: {said} (TOPCOAT_KEEP_ENV=1 leaves the environment alone)", style="dim", markup=False)
    return made


def model_of(run_or_model: str) -> str:
    """The model that will be loaded for a run folder, which its recipe names, or else the path or hub id itself.

    Raises TopcoatError for a local path that is not there.
    """
    folder = RunFolder(Path(run_or_model))
    if folder.recipe.is_file():
        return load_recipe(folder.recipe, check_files=False).model.path
    if looks_local(run_or_model) and not Path(run_or_model).expanduser().exists():
        what = f"{run_or_model} is not there; expected a run folder, a model directory or a .gguf file"
        raise TopcoatError(what, fix=near_names(Path(run_or_model)))
    return run_or_model
