"""topcoat export: a finished run as a file for llama.cpp, Ollama, PEFT or vLLM, proved to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.cli.process import model_of, prepare_process
from topcoat.exporting.choices import TARGETS, TYPES, type_of
from topcoat.runs.folder import RunFolder

_TYPES = ", ".join(kind.lower() for kind in TYPES["gguf"])


def command(
    run: Annotated[Path, typer.Argument(help="run folder that `topcoat train` wrote")],
    to: Annotated[str, typer.Option("--to", help=f"what to write: {', '.join(TARGETS)}")],
    output: Annotated[Path | None, typer.Option("--output", help="folder to write; RUN/TO if left out")] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help=f"of the matrices in a GGUF: {_TYPES}. Left out: the checkpoint's 16 bits, or q4_1 for the integers "
            "of a QA-LoRA; f32 for gguf-lora",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Export a finished run: a GGUF of the whole model, a GGUF of the adapter, or a PEFT directory.

    It is called done only after the file was read back and its logits on held-out prompts equal those of base +
    adapter, up to the rounding of the type.
    """
    console = make_console(json)
    type_of(to, type)
    RunFolder(run).require_run()
    prepare_process(model_of(str(run)), console)

    from topcoat.runs.exporting import export_run

    target, done = export_run(run, to, output, type, lambda text: console.print(text, markup=False))
    proof = done.proof
    console.print(
        f"exported to {target}: on {proof.prompts} held-out prompts ({proof.tokens} positions) the logits differ by "
        f"{proof.relative_error:.1e} (at most {proof.tolerance:.0e} is rounding), top-1 agreement "
        f"{100 * proof.top1_agreement:.1f} %",
        markup=False,
    )
    if json:
        print_json({"exported": str(target), "to": to, **done.as_json()})
    return 0
