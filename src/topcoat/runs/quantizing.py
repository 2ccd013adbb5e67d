"""What a number format costs and spares on one model, measured: bits, error by layer, perplexity on a text, time.

    error of a linear = |W - Ŵ| / |W|, in float32, W as the checkpoint has it
    perplexity        = exp(mean loss) of the text, in windows that do not overlap, or of the answers of rows

Each format is loaded, measured and forgotten before the next, so memory is that of one. The first line is the model as
the checkpoint stores it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from topcoat.data.batches import Batches
from topcoat.data.load import load_data
from topcoat.data.render import NOWHERE, Example
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError
from topcoat.evaluation.loss import mean_loss, perplexity
from topcoat.files import make_folder, write_file
from topcoat.model.fill import block_linears, formats_of, match_all, named_outside
from topcoat.model.load import Base, load_model
from topcoat.model.originals import Originals
from topcoat.model.settings import ModelSettings
from topcoat.model.skeleton import build_skeleton
from topcoat.model.source import open_source
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import QuantConfig, StoredConfig, needs_rows, storage
from topcoat.report.quantize_page import render
from topcoat.runs.folder import write_json
from topcoat.runs.listener import Listener
from topcoat.runs.rounding import round_into
from topcoat.training.objectives.sft import sft

WINDOW = 1024
"""Tokens of a window of plain text; less where the model's context is shorter."""


@dataclass(frozen=True)
class Measured:
    """One format on one model."""

    name: str
    """As it was asked for, such as int4+rounding=hqq."""
    settings: dict[str, Any]
    bits_per_weight: float
    """Of what is quantized, scales and all."""
    weight_bytes: int
    """Of the whole model: quantized weights, and all others in the compute dtype."""
    load_s: float
    """Reading, calibrating and quantizing."""
    perplexity: float
    score_s: float
    tokens: int
    """Predicted ones, that the perplexity is of."""
    errors: dict[str, float] = field(default_factory=dict)
    """Path of a linear -> |W - Ŵ| / |W|."""

    @property
    def mean_error(self) -> float:
        """Of all linears, each counted once."""
        return sum(self.errors.values()) / max(1, len(self.errors))

    def as_json(self) -> dict[str, Any]:
        """All of it, for report.json."""
        return asdict(self) | {"mean_error": self.mean_error}


def measure_formats(
    model: ModelSettings,
    formats: Sequence[tuple[str, QuantConfig]],
    text: Path,
    tokens: int,
    rows: tuple[DataSettings, int] | None,
    listener: Listener,
) -> list[Measured]:
    """Each of `formats` on the first `tokens` tokens of `text` (plain text, or a file of rows); the first line is the
    model as stored. `rows` are the settings and the seed of calibration rows.

    Raises TopcoatError: a format does not fit the model, or needs rows and there are none.
    """
    asked = [("as stored", StoredConfig()), *formats]
    _check_shapes(model, [config for _, config in formats])  # all of them before minutes are spent on the first
    found = []
    for name, config in asked:
        listener.say(f"measuring {name}")
        found.append(_measure(name, model.model_copy(update={"quantization": config}), text, tokens, rows, listener))
    return found


def _check_shapes(model: ModelSettings, configs: Sequence[QuantConfig]) -> None:
    """Raises TopcoatError for formats that the model's linears do not fit."""
    source = open_source(model)
    skeleton = build_skeleton(source.config, torch.float32, "eager")
    places = match_all(skeleton, source)
    for config in configs:
        outside = named_outside(skeleton, config, places)
        formats_of({**block_linears(skeleton), **outside}, config, places, outside)


def _measure(
    name: str,
    model: ModelSettings,
    text: Path,
    tokens: int,
    rows: tuple[DataSettings, int] | None,
    listener: Listener,
) -> Measured:
    config = model.quantization
    assert config is not None
    began = time.perf_counter()
    if needs_rows(config):
        if rows is None:
            raise TopcoatError(
                f"{name} is rounded on rows, and none are named",
                where="--calibrate",
                fix="add --calibrate ROWS: a file of rows, or a recipe",
            )
        with tempfile.TemporaryDirectory(prefix="topcoat-") as folder:
            listener.say(round_into(Path(folder) / "rounded", model, *rows, listener))
            base = load_model(model, Path(folder) / "rounded")
    else:
        base = load_model(model)
    loaded = time.perf_counter()
    examples = read_text(text, base, tokens)
    batches = Batches(examples, len(examples), budget_tokens=WINDOW, packing=True)
    before_scoring = time.perf_counter()
    mean = mean_loss(lambda batch: sft(base.model, batch), batches)
    scored = time.perf_counter()
    bits, nbytes = sizes(base)
    return Measured(
        name=name,
        settings=storage(config) | {"rounding": config.model_dump().get("rounding"), "overrides": config.overrides},
        bits_per_weight=bits,
        weight_bytes=nbytes,
        load_s=loaded - began,
        perplexity=perplexity(mean),
        score_s=scored - before_scoring,
        tokens=sum(example.n_target_tokens for example in examples),
        errors=errors_of(base),
    )


def sizes(base: Base) -> tuple[float, int]:
    """Bits a weight of what FrozenLinears and quantized embeddings store, and bytes of the whole model's weights."""
    states = [m.weight_state for m in base.model.modules() if isinstance(m, FrozenLinear | FrozenEmbedding)]
    once = {next(iter(q.tensors.values())).data_ptr(): q for q in states}.values()
    weights = sum(q.shape[0] * q.shape[1] for q in once)
    stored = sum(q.nbytes for q in once)
    biases = sum(m.bias.nbytes for m in base.model.modules() if isinstance(m, FrozenLinear) and m.bias is not None)
    return 8 * stored / max(1, weights), stored + biases + sum(p.nbytes for p in base.model.parameters())


@torch.no_grad()
def errors_of(base: Base) -> dict[str, float]:
    """Path of every quantized weight -> |W - Ŵ| / |W|, against the checkpoint's own numbers."""
    originals, errors = Originals(base), {}
    for path, module in base.model.named_modules():
        if isinstance(module, FrozenLinear | FrozenEmbedding):
            weight = originals(path)
            size = float(weight.norm())
            errors[path] = float((module.dense_weight(torch.float32) - weight).norm()) / size if size else 0.0
    return errors


def read_text(file: Path, base: Base, tokens: int) -> list[Example]:
    """The first `tokens` tokens of `file` as examples: windows of a .txt, else rows with their answers as labels.

    Raises TopcoatError: the file cannot be read, or is too short to predict anything.
    """
    if file.suffix != ".txt":
        settings = DataSettings(train=str(file), validation=None, overlong="truncate")
        loaded = load_data(
            settings, base.tokenizer, context_length=base.context_length, seed=0, vocab_rows=base.vocab_rows
        ).train
        return _up_to(tokens, loaded)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopcoatError(
            f"{file} cannot be read: {error}", where="--text", fix="name a text file in UTF-8, or a file of rows"
        ) from error
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    window = min(WINDOW, base.context_length)
    found = [Example(list(part), list(part), NOWHERE) for part in _windows(ids, window)]
    if not found:
        raise TopcoatError(
            f"{file} has {len(ids)} tokens, too few to predict any", where="--text", fix="name a longer text"
        )
    return found


def _windows(ids: Sequence[int], window: int) -> list[Sequence[int]]:
    """Parts of `window` tokens, the last one shorter; none of a single token."""
    return [part for at in range(0, len(ids), window) if len(part := ids[at : at + window]) > 1]


def _up_to(tokens: int, examples: Sequence[Example]) -> list[Example]:
    """The first examples, together at most `tokens`, and one at least."""
    found: list[Example] = []
    for example in examples:
        tokens -= len(example.input_ids)
        if found and tokens < 0:
            break
        found.append(example)
    return found


def write_quantize_report(out: Path, model: str, text: Path, found: Sequence[Measured]) -> Path:
    """report.json and report.html in the folder `out`, made where it is missing; returns the page's path."""
    make_folder(out)
    lines = [one.as_json() for one in found]
    facts = {"model": model, "text": str(text), "torch_threads": torch.get_num_threads(), "formats": lines}
    write_json(out / "report.json", facts)
    write_file(out / "report.html", render(facts))
    return out / "report.html"
