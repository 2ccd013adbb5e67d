"""topcoat merge: base and adapter become one model, with a proof that it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.cli.process import model_of, prepare_process
from topcoat.runs.folder import RunFolder


def command(
    run: Annotated[Path, typer.Argument(help="run folder that `topcoat train` wrote")],
    out: Annotated[Path | None, typer.Option("--out", help="folder to write; RUN/merged if left out")] = None,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Merge a finished run into a Hugging Face directory.

    It is called done only after its logits on held-out prompts equal those of base + adapter within rounding.
    """
    console = make_console(json)
    RunFolder(run).require_run()
    prepare_process(model_of(str(run)), console)

    from topcoat.runs.merging import merge_run

    target, proof = merge_run(run, out, lambda text: console.print(text, markup=False))
    console.print(
        f"merged into {target}: on {proof.prompts} held-out prompts ({proof.tokens} positions) the logits differ by "
        f"{proof.relative_error:.1e} (at most {proof.tolerance:.0e} is rounding), top-1 agreement "
        f"{100 * proof.top1_agreement:.1f} %",
        markup=False,
    )
    if json:
        print_json({"merged": str(target), **proof.as_json()})
    return 0
