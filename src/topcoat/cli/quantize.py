"""topcoat quantize: a quantized checkpoint that transformers with bitsandbytes reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.cli.process import prepare_process
from topcoat.units import show_bytes

FORMATS = ("nf4", "int8", "bf16", "fp16", "fp32")


def command(
    model: Annotated[str, typer.Argument(help="Hugging Face directory, .gguf file or hub id")],
    out: Annotated[Path, typer.Option("--out", help="folder to write")],
    format: Annotated[str, typer.Option("--format", help=f"number format: {', '.join(FORMATS)}")] = "nf4",
    block_size: Annotated[int, typer.Option("--block-size", help="nf4: weights that share a scale")] = 64,
    double_quant: Annotated[bool, typer.Option(help="nf4: store the scales in 8 bits")] = True,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Write the model with its block linears stored in another number format; embeddings and head stay as they are."""
    console = make_console(json)
    config = settings_of(format, block_size, double_quant)
    prepare_process(model, console)

    from topcoat.exporting.checkpoint import quantize_checkpoint
    from topcoat.model.settings import ModelSettings
    from topcoat.model.source import open_source

    report = quantize_checkpoint(open_source(ModelSettings(path=model)), out, config)
    for warning in report.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(f"wrote {out}: {show_bytes(report['bytes'])}", markup=False)
    if json:
        print_json({"out": str(out), **report})
    return 0


def settings_of(format: str, block_size: int, double_quant: bool):  # type: ignore[no-untyped-def]
    """The quantization settings those options mean. Raises TopcoatError for values no format has."""
    from pydantic import TypeAdapter, ValidationError

    from topcoat.errors import TopcoatError
    from topcoat.quant.settings import Quantization

    values: dict[str, object] = {"format": format}
    if format == "nf4":
        values |= {"block_size": block_size, "double_quant": double_quant}
    try:
        return TypeAdapter(Quantization).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        bad = block_size if "block_size" in first["loc"] else format
        raise TopcoatError(
            f"{bad!r} is no {'block size' if bad is block_size else 'format'} this version writes",
            where="topcoat quantize",
            fix=f"--format is one of {', '.join(FORMATS)}; --block-size a power of two from 32 to 4096",
        ) from error
