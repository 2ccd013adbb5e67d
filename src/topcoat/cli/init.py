"""topcoat init: a short, commented recipe for a model and a data file, decided from what lies in both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from topcoat.cli.output import make_console, print_json, print_notes
from topcoat.errors import TopcoatError
from topcoat.json_files import read_json_object
from topcoat.planning.machine import available_memory_bytes
from topcoat.units import show_bytes, show_count

SMALL = 1_000_000_000  # parameters; below it 4-bit weights save little memory and cost more quality
ROOM = 0.5  # share of the free memory that frozen weights may take; activations and the rest need the other half
FEWEST_TO_SPLIT = 20  # rows; a tenth of fewer than this says nothing

QUESTION_ANSWER = (  # columns that plainly are a prompt and its completion
    ("prompt", "question", "query", "input", "instruction", "source"),
    ("completion", "answer", "response", "output", "target"),
)


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say about it; None where they do not."""

    kind: str
    parameters: int | None
    stored_bytes: int | None


@dataclass(frozen=True)
class Choice:
    """A line of the recipe and why."""

    line: str
    reason: str


def command(
    model: Annotated[str, typer.Option(help="model directory, .gguf file or hub id", metavar="PATH")],
    data: Annotated[str, typer.Option(help="file of rows: .jsonl .json .csv .tsv .parquet", metavar="FILE")],
    output: Annotated[str | None, typer.Option(help="folder of the run; runs/NAME-OF-DATA if left out")] = None,
    write: Annotated[Path, typer.Option("-o", "--recipe", help="the recipe to write")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="overwrite the recipe if it is there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write a short, commented recipe that trains MODEL on DATA.

    The first rows name the data format; the model's size and the free memory decide how its weights are stored.
    """
    from topcoat.files import write_file
    from topcoat.recipe.load import load_recipe_with_notes, recipe_from_dict

    console = make_console(as_json)
    if write.exists() and not force:
        raise TopcoatError(f"{write} is there already", fix="write another one with -o NAME.yaml, or add --force")
    if write.is_dir():
        raise TopcoatError(f"{write} is a folder", fix=f"name a file: -o {write / 'recipe.yaml'}")
    output = output or f"runs/{data_name(data)}"
    # Wrong paths are said in the recipe loader's words, before anything is read.
    recipe_from_dict({"model": model, "data": data, "output": output}, "topcoat init")
    text, facts = recipe_text(model, data, output, command_line=f"topcoat train {write}")
    write_file(write, text)
    _, notes = load_recipe_with_notes(write)
    print_notes(notes, console)
    console.print(text, markup=False, end="")
    console.print(f"\nwrote {write}; train with: topcoat train {write}", style="green", markup=False)
    if as_json:
        print_json({"ok": True, "recipe": write, "output": output, **facts})


def recipe_text(
    model: str,
    data: str,
    output: str,
    command_line: str,
    *,
    facts: ModelFacts | None = None,
    decided: Mapping[str, Choice] | None = None,
) -> tuple[str, dict[str, Any]]:
    """The recipe as commented YAML, and the facts it was decided from. Raises TopcoatError for unreadable data.

    `facts` spares a look at the model's files. `decided` are settings of model, adapter and train that were chosen
    elsewhere, such as "adapter.r" -> its line and why; they take the place of what would be written here, or join it.
    """
    form, count, columns = recognise_rows(data)
    facts = facts or model_facts(model)
    size = f"{show_count(facts.parameters)} parameters" if facts.parameters else "size not known yet"
    held_out = (
        ("0.1", "share of the rows held out") if count >= FEWEST_TO_SPLIT else ("null", f"{count} rows are too few")
    )
    decided = decided or {}
    storage = decided.get("model.quantization") or choose_storage(facts, available_memory_bytes())
    method = decided.get("adapter.method", Choice("method: lora", ""))
    usual = {
        "model.quantization": storage,
        "adapter.method": method,
        "adapter.r": Choice("r: 16", "width of the update: more learns more and costs more"),
        "adapter.lora_alpha": Choice("lora_alpha: 32", "strength of the update: scale = lora_alpha / r = 2"),
        "train.epochs": Choice("epochs: 3", ""),
        "train.batch_size": Choice(
            "batch_size: 16", "examples in one step; how they are split changes only speed and memory"
        ),
        "train.learning_rate": Choice("learning_rate: auto", _rate_reason(facts, method.line)),
    }
    if method.line == "method: full":
        usual = {key: choice for key, choice in usual.items() if key not in ("adapter.r", "adapter.lora_alpha")}
    lines = usual | dict(decided)
    text = f"""\
# Train with: {command_line}
# What is left out has a default; the run saves all of them. `topcoat schema` describes every setting.
model:
  path: {_scalar(model)}  # {facts.kind}, {size}
{_section(lines, "model")}adapter:
{_section(lines, "adapter")}data:
  train: {_scalar(data)}  # {count:,} rows, format {form}
{columns}  validation: {held_out[0]}  # {held_out[1]}
{_section(lines, "data")}train:
{_section(lines, "train")}{_section(lines, "evaluate", "evaluate:")}output: {_scalar(output)}
"""
    return text, {"format": form, "rows": count, "parameters": facts.parameters, "storage": storage.line}


def _section(lines: Mapping[str, Choice], section: str, head: str = "") -> str:
    """The lines of one section, each with its reason behind it, below `head` if there are any."""
    chosen = [choice for key, choice in lines.items() if key.startswith(f"{section}.")]
    said = [f"  {choice.line}" + (f"  # {choice.reason}" if choice.reason else "") for choice in chosen]
    return "".join(f"{line}\n" for line in ([head] if head and chosen else []) + said)


def recognise_rows(data: str) -> tuple[str, int, str]:
    """(format, number of rows, the recipe's line of renamed columns) of a data file.

    Raises TopcoatError naming rows that are none, or columns that nothing reads.
    """
    from topcoat.data.row_formats import recognise, to_conversations
    from topcoat.data.rows import read_rows

    rows = read_rows(data)
    names = set(rows[0].values)
    asked, answered = (next((name for name in words if name in names), None) for words in QUESTION_ANSWER)
    if recognise(names) is None and asked and answered:
        renamed = {"prompt": asked, "completion": answered}
        line = f"  columns: {{prompt: {asked}, completion: {answered}}}  # what is asked, and what is to be learnt\n"
        return to_conversations(rows[:100], "auto", renamed)[0], len(rows), line
    return to_conversations(rows[:100], "auto", {})[0], len(rows), ""


def model_facts(model: str) -> ModelFacts:
    """Kind and size from config.json and file sizes, or from the GGUF header; nothing is downloaded."""
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf_facts(path)
    config = path / "config.json"
    if not config.is_file():
        return ModelFacts("hub id", None, None)
    from topcoat.model.safetensors_header import read_header

    kind = str(read_json_object(config, "download the model again").get("model_type", "unknown"))
    tensors = [tensor for file in path.glob("*.safetensors") for tensor in read_header(file)]
    if not tensors:
        return ModelFacts(kind, None, None)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    return ModelFacts(kind, parameters, sum(tensor.n_bytes for tensor in tensors))


def _gguf_facts(path: Path) -> ModelFacts:
    from topcoat.model.gguf_header import read_header

    header = read_header(path)
    parameters = sum(math.prod(entry.shape) for entry in header.entries)
    kind = str(header.metadata.get("general.architecture", "gguf"))
    return ModelFacts(f"{kind}, GGUF", parameters, path.stat().st_size)


def choose_storage(facts: ModelFacts, available: int | None) -> Choice:
    """How to store the frozen weights: dense where they fit and the model is small, nf4 otherwise."""
    nf4 = "quantization: {format: nf4, double_quant: true}"
    dense = "quantization: null"
    if facts.parameters is None:
        return Choice(nf4, "4.13 bits a weight; null keeps them dense")
    dense_bytes = 2 * facts.parameters
    if available is not None and dense_bytes > ROOM * available:
        return Choice(nf4, f"dense weights would take {show_bytes(dense_bytes)} of {show_bytes(available)} free")
    if facts.parameters < SMALL:
        return Choice(
            dense, f"dense: at this size 4-bit weights save {show_bytes(1.48 * facts.parameters)} and cost quality"
        )
    return Choice(
        nf4, f"4.13 bits a weight: {show_bytes(0.516 * facts.parameters)} for {show_bytes(dense_bytes)} dense"
    )


def _rate_reason(facts: ModelFacts, method: str = "method: lora") -> str:
    if facts.parameters is None:
        return "by the model's size"
    from topcoat.adapters.settings import FullConfig, LoraConfig
    from topcoat.training.schedule import default_learning_rate

    adapter, said = (FullConfig(), "full tuning") if method == "method: full" else (LoraConfig(), "LoRA")
    return f"{default_learning_rate(adapter, facts.parameters):g} for {said} at this size"


def data_name(data: str) -> str:
    """ "data/tickets.jsonl.gz" -> "tickets"."""
    return Path(data).name.split(".")[0] or "run"


def _scalar(text: str) -> str:
    """`text` as a YAML value, in quotes where YAML would read it as something else."""
    from topcoat.recipe.yaml_text import to_yaml

    return to_yaml({"x": text}).removeprefix("x: ").rstrip("\n")
