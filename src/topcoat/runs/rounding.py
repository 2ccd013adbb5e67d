"""The base of a run whose recipe asks for calibration: its linears rounded once, on the run's own training rows.

The integers are kept in the run's folder. A resumed run, a merge and a chat take them from there: they are never found
twice, since another machine or another number of threads would round some of them another way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from topcoat.data.load import load_data
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError
from topcoat.exporting.calibrating import ROW_TOKENS, few_tokens, rounded_linears
from topcoat.exporting.rounded import write_rounded
from topcoat.files import discard
from topcoat.model.load import Base, context_length, load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.source import Source, open_source
from topcoat.model.tokenizers import set_chat_template
from topcoat.quant.settings import GptqConfig, IntConfig, QuantConfig, needs_rows, read_config, rounds_by_rows
from topcoat.recipe.schema import Recipe
from topcoat.runs.folder import RunFolder
from topcoat.runs.listener import Listener
from topcoat.units import show_percent, show_seconds


def load_base(model: ModelSettings, folder: RunFolder) -> Base:
    """The base of the run in `folder`, with the integers that it was trained on."""
    if model.quantization is None or not needs_rows(model.quantization):
        return load_model(model)
    if not folder.rounded.is_dir():
        raise TopcoatError(
            f"the run's rounded weights are not there: {folder.rounded.name}/ is missing",
            where=str(folder.path),
            fix="restore the folder; weights rounded again may differ from those that were trained on",
        )
    return load_model(model, folder.rounded)


def load_base_for_training(
    recipe: Recipe, folder: RunFolder, listener: Listener, check: Callable[[], None] = lambda: None
) -> Base:
    """As `load_base`; a run that begins rounds them first. `check` is called between blocks and may raise to leave."""
    config = recipe.model.quantization
    if config is not None and needs_rows(config) and not folder.recipe.exists():
        if folder.rounded.exists():  # of a start that died before it was written down what it was rounded for
            discard(folder.rounded)
        objective = recipe.train.objective
        listener.say(round_into(folder.rounded, recipe.model, recipe.data, recipe.seed, listener, check, objective))
    return load_base(recipe.model, folder)


def round_into(
    out: Path,
    model: ModelSettings,
    data: DataSettings,
    seed: int,
    listener: Listener,
    check: Callable[[], None] = lambda: None,
    objective: str = "sft",
) -> str:
    """Round what `model.quantization` asks for into the directory `out`, and say in one line how that went."""
    source = open_source(model)
    assert model.quantization is not None
    rows = calibration_rows(source, model, data, rows_asked(model.quantization), seed, listener, check, objective)
    if (few := few_tokens(source, rows)) is not None:
        listener.say(f"warning: {few}")
    with listener.progress("calibrating", source.config.num_hidden_layers) as advance:

        def done(blocks: int) -> None:
            check()
            advance(blocks, {})

        tokens = sum(min(len(row), ROW_TOKENS) for row in rows)
        found = rounded_linears(source, model, rows, done)
        told = write_rounded(out, found, {"rows": len(rows), "tokens": tokens, "seed": seed})
    return (
        f"rounded {len(told['linears'])} linears on {len(rows):,} rows in {show_seconds(told['seconds'])}: their "
        f"outputs are off by {show_percent(told['mean_error'])}, and would be by "
        f"{show_percent(told['mean_nearest_error'])} with nearest rounding"
    )


def rows_asked(config: QuantConfig) -> int:
    """The most calibration rows that a format of `config` asks for."""
    formats = [config, *(read_config(value) for value in config.overrides.values())]
    return max(c.calibration_rows for c in formats if isinstance(c, IntConfig | GptqConfig) and rounds_by_rows(c))


def calibration_rows(
    source: Source,
    model: ModelSettings,
    data: DataSettings,
    count: int,
    seed: int,
    listener: Listener,
    check: Callable[[], None] = lambda: None,
    objective: str = "sft",
) -> list[list[int]]:
    """Token ids of `count` training rows (all, where there are fewer), drawn by `seed`; rendered as training does."""
    tokenizer = source.tokenizer()
    set_chat_template(tokenizer, model.chat_template)
    loaded = load_data(
        data,
        tokenizer,
        context_length=context_length(source.config),
        seed=seed,
        objective=objective,
        bar=listener.progress,
        check=check,
    ).train
    drawn = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(seed))[:count]
    return [loaded[int(at)].input_ids for at in drawn]
