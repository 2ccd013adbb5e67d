"""topcoat quantize: a checkpoint in another number format, or a report on what formats cost on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topcoat.cli.live import Terminal
from topcoat.cli.output import make_console, print_json
from topcoat.cli.process import model_of, prepare_process
from topcoat.errors import TopcoatError
from topcoat.quant.settings import GptqConfig, IntConfig, NoFormat, QuantConfig, needs_rows, read_config
from topcoat.units import show_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from topcoat.data.settings import DataSettings
    from topcoat.runs.quantizing import Measured

LEVELS = ("nf4", "fp4", "nf3", "nf2", "nf4-icq", "nf3-icq", "nf2-icq")
FORMATS = (*LEVELS, "int8", "int4", "int3", "int2", "gptq", "gguf", "bf16", "fp16", "fp32")


def command(
    model: Annotated[str, typer.Argument(help="Hugging Face directory, .gguf file or hub id")],
    out: Annotated[Path, typer.Option("--out", help="folder to write")],
    format: Annotated[
        str,
        typer.Option("--format", help=f"{', '.join(FORMATS)}; settings behind it, such as int4+group_size=64"),
    ] = "nf4",
    block_size: Annotated[
        int | None, typer.Option(help="nf and fp4: weights that share a scale; 64 if left out")
    ] = None,
    double_quant: Annotated[
        bool | None, typer.Option(help="nf and fp4: store the scales in 8 bits, as by default")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="PATTERN=FORMAT for some linears, such as lm_head=int8; may be repeated")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="file of rows, or a recipe: round int and gptq formats by GPTQ on them")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="write no weights, but measure: --format may list several, with commas")
    ] = False,
    text: Annotated[Path | None, typer.Option(help="for --report: a .txt or a file of rows, for perplexity")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="for --report: how many of the text's first tokens")] = 16384,
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Write the model with its block linears in another number format, or measure what formats cost (--report)."""
    console = make_console(json)
    specs = format.split(",") if report else [format]
    configs = [
        _calibrated(_overridden(settings_of(spec, block_size, double_quant), override or []), calibrate is not None)
        for spec in specs
    ]
    _check_options(report, text, out, calibrate, configs)
    prepare_process(model_of(model), console)
    if report:
        assert text is not None
        return _report(model, out, list(zip(specs, configs, strict=True)), text, tokens, calibrate, console, json)
    return _write(model, out, configs[0], calibrate, console, json)


def _write(model: str, out: Path, config: QuantConfig, calibrate: str | None, console: Console, as_json: bool) -> int:
    from topcoat.exporting.calibrating import few_tokens, rounded_linears
    from topcoat.exporting.checkpoint import quantize_checkpoint
    from topcoat.model.settings import ModelSettings
    from topcoat.model.source import open_source
    from topcoat.runs.rounding import calibration_rows, rows_asked

    settings, listener = ModelSettings(path=model, quantization=config), Terminal(console)
    source = open_source(settings)
    if calibrate is None:
        written = quantize_checkpoint(source, out, config)
    else:
        if out.exists():  # said before minutes are spent
            raise TopcoatError(f"{out.name} exists already", str(out), "use another name, or move what is there away")
        data, seed = _rows(calibrate)
        rows = calibration_rows(source, settings, data, rows_asked(config), seed, listener)
        if (few := few_tokens(source, rows)) is not None:
            console.print(f"warning: {few}", style="yellow", markup=False)
        with listener.progress("calibrating", source.config.num_hidden_layers) as advance:
            found = rounded_linears(source, settings, rows, lambda blocks: advance(blocks, {}))
            written = quantize_checkpoint(source, out, config, rounded=found)
    for warning in written.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    bits = f"{written['bits_per_weight']:.2f} bits a weight"
    console.print(f"wrote {out}: {show_bytes(written['bytes'])}, {bits}, {written['layout']} layout", markup=False)
    if as_json:
        print_json({"out": str(out), **written})
    return 0


def _report(
    model: str,
    out: Path,
    formats: list[tuple[str, QuantConfig]],
    text: Path,
    tokens: int,
    calibrate: str | None,
    console: Console,
    as_json: bool,
) -> int:
    from topcoat.model.settings import ModelSettings
    from topcoat.runs.quantizing import measure_formats, write_quantize_report

    rows = None if calibrate is None else _rows(calibrate)
    found = measure_formats(ModelSettings(path=model), formats, text, tokens, rows, Terminal(console))
    page = write_quantize_report(out, model, text, found)
    console.print(_table(found))
    console.print(f"wrote {page} and {page.with_suffix('.json').name}", markup=False)
    if as_json:
        print_json({"out": str(out), "formats": [one.as_json() for one in found]})
    return 0


def _table(found: list[Measured]) -> Table:
    from rich.table import Table

    from topcoat.report.quantize_page import COLUMNS, row

    facts = [one.as_json() for one in found]
    rows = [row(one, facts[0]) for one in facts]
    table = Table(box=None, padding=(0, 1))
    table.add_column(COLUMNS[0], overflow="fold")  # takes what the figures leave
    for name, cells in zip(COLUMNS[1:], list(zip(*rows, strict=True))[1:], strict=True):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, (name, *cells))))
    for line in rows:
        table.add_row(*line)
    return table


def _rows(calibrate: str) -> tuple[DataSettings, int]:
    """Data settings and seed of the calibration rows: a recipe's own, or those of a file."""
    from topcoat.data.settings import DataSettings
    from topcoat.recipe.load import load_recipe

    if Path(calibrate).suffix in (".yaml", ".yml"):
        recipe = load_recipe(Path(calibrate))
        return recipe.data, recipe.seed
    if not Path(calibrate).is_file():
        raise TopcoatError(f"{calibrate} is not there", where="--calibrate", fix="name a file of rows, or a recipe")
    return DataSettings(train=calibrate, validation=None, overlong="truncate"), 42


def _check_options(
    report: bool, text: Path | None, out: Path, calibrate: str | None, configs: list[QuantConfig]
) -> None:
    """Raises TopcoatError for options that do not go together."""
    if report and text is None:
        raise TopcoatError(
            "--report measures perplexity, and no text is named", "--text", "add --text FILE: a .txt or a file of rows"
        )
    if report and text is not None and not text.is_file():
        raise TopcoatError(f"{text} is not there", "--text", "name a .txt or a file of rows")
    if not report and text is not None:
        raise TopcoatError("--text belongs to --report", "--text", "add --report, or leave --text out")
    if report and out.is_file():
        raise TopcoatError(f"{out} is a file", "--out", "name a folder for the report")
    asks = any(map(needs_rows, configs))
    if asks and calibrate is None:
        raise TopcoatError(
            "rounding gptq needs rows to calibrate on",
            "--calibrate",
            "add --calibrate ROWS: a file of rows, or a recipe",
        )
    if calibrate is not None and not asks:
        raise TopcoatError(
            "--calibrate belongs to int2, int3, int4 and gptq, and none of them is in --format",
            "--calibrate",
            "leave it out, or write --format int4",
        )


def _calibrated(config: QuantConfig, has_rows: bool) -> QuantConfig:
    """With rows at hand, rounding gptq where the format has it and nothing else was said."""
    if has_rows and isinstance(config, IntConfig | GptqConfig) and "rounding" not in config.model_fields_set:
        return config.model_copy(update={"rounding": "gptq"})
    return config


def _overridden(config: QuantConfig, overrides: list[str]) -> QuantConfig:
    """`config` with overrides of the form PATTERN=FORMAT[+key=value]. Raises TopcoatError for another form."""
    found = {}
    for override in overrides:
        pattern, is_there, spec = override.partition("=")
        if not is_there or not pattern or not spec:
            raise TopcoatError(
                f"{override!r} is no override", "--override", "write PATTERN=FORMAT, such as lm_head=int8"
            )
        found[pattern] = settings_of(spec, None, None).model_dump(exclude={"overrides"})
    return config.model_copy(update={"overrides": found}) if found else config


def settings_of(format: str, block_size: int | None, double_quant: bool | None) -> QuantConfig:
    """The quantization settings those options mean; `format` is NAME or NAME+key=value+key=value.

    Raises TopcoatError for values no format has.
    """
    name, *pairs = format.strip().split("+")
    given: dict[str, object] = {"block_size": block_size, "double_quant": double_quant}
    values = {key: value for key, value in given.items() if value is not None}
    if values and name not in LEVELS and name in FORMATS:
        options = " and ".join(f"--{key.replace('_', '-')}" for key in values)
        raise TopcoatError(
            f"{options} belongs to {', '.join(LEVELS)}, and --format is {name}", "topcoat quantize", "leave it out"
        )
    values |= dict(_pair(pair) for pair in pairs)
    try:
        return read_config({"format": name, **values})
    except NoFormat as error:
        if name in FORMATS:
            settings = [key for key in type(read_config(name)).model_fields if key not in QuantConfig.model_fields]
            fix = f"settings of {name}: {', '.join(settings) or 'none'}"
            raise TopcoatError(f"the format {name} {error.said}", "--format", fix) from error
        from topcoat.recipe.fields import closest

        near = closest(name, FORMATS)
        fix = f"did you mean {' or '.join(near)}?" if near else f"--format is one of {', '.join(FORMATS)}"
        raise TopcoatError(f"{name!r} is no format this version writes", "--format", fix) from error


def _pair(text: str) -> tuple[str, object]:
    """ "group_size=64" -> ("group_size", 64), values as YAML reads them."""
    from topcoat.recipe.yaml_text import parse_yaml

    key, is_there, value = text.partition("=")
    if not is_there:
        raise TopcoatError(f"{text!r} is no setting", "--format", "write key=value, such as int4+group_size=64")
    return key, parse_yaml(value, "--format").values
