"""Before the first step: is the folder free or continuable, what will the run be, and does it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.attach import Adapters
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import AdaloraConfig, FullConfig, LoraConfig
from topcoat.data.batches import Batch, StepPlan, micro_batches, worst_batch
from topcoat.data.labels import LABELLED
from topcoat.data.load import Dataset
from topcoat.errors import TopcoatError
from topcoat.files import sweep_temporaries
from topcoat.kernels.product_native import amx_library
from topcoat.model.fuse import block_sizes
from topcoat.model.load import Base
from topcoat.planning.bill import Bill
from topcoat.planning.loaded import fused_blocks, loaded_counts
from topcoat.planning.machine import available_memory_bytes
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.planning.model_files import shapes_here
from topcoat.planning.possible import require_possible
from topcoat.planning.process import product_bytes
from topcoat.planning.sizes import ROUNDING, Setup, activation_room, bill_of, graph_bytes
from topcoat.quant.dense import NAMES
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear
from topcoat.recipe.load import load_recipe
from topcoat.recipe.schema import Recipe
from topcoat.run_lock import RunLock
from topcoat.runs.engine import Engine, choose_engine
from topcoat.runs.folder import RunFolder
from topcoat.runs.graphs import require_graphs
from topcoat.runs.receipt import require_same_recipe
from topcoat.runs.timing import predicted_seconds
from topcoat.training.memory import memory_bytes
from topcoat.training.objectives.hidden import needed_rows, spans
from topcoat.training.objectives.table import OBJECTIVES
from topcoat.training.on_device import require_device
from topcoat.training.schedule import default_learning_rate
from topcoat.training.static_batch import shape_of
from topcoat.units import show_bytes, show_count

EVALUATIONS = 4  # a run, where the recipe does not say


class RunSteps:
    """The run's data as the loop sees it: a step's micro batches, made when they are asked for."""

    def __init__(self, data: Dataset, recipe: Recipe, budget_tokens: int) -> None:
        settings = recipe.train
        self.examples, self.budget, self.packing = data.train, budget_tokens, recipe.data.packing
        self.virtual_tokens = recipe.adapter.virtual_tokens
        self.plan = StepPlan(
            data.train.lengths,
            part=data.train.part,
            weights=data.weights,
            seed=recipe.seed,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
        )
        self.total = self.plan.total_steps
        self._worst: Batch | None = None

    def micro_batches(self, step: int) -> list[Batch]:
        """The examples of optimizer step `step`, packed or padded."""
        indices = self.plan.step_examples(step)
        return micro_batches(self.examples, indices, **self._how())

    def limit(self, tokens: int) -> None:
        """Micro batches of at most `tokens` positions from here on: memory ran out."""
        self.budget, self._worst = tokens, None

    def worst(self) -> Batch:
        """The largest micro batch of the run; looked for once, since it walks all steps."""
        if self._worst is None:
            self._worst = worst_batch(self.plan, self.examples, targets=self.examples.targets, **self._how())
        return self._worst

    def _how(self) -> dict[str, Any]:
        return {"budget_tokens": self.budget, "packing": self.packing, "virtual_tokens": self.virtual_tokens}


@dataclass(frozen=True)
class RunPlan:
    """What was decided where the recipe left it open, and the bill."""

    steps: RunSteps
    bill: Bill
    learning_rate: float
    micro_batch_tokens: int
    evaluate_every: int
    engine: Engine
    seconds: dict[str, Any] = field(default_factory=dict)
    """Predicted time of a step and of all (`timing.py`)."""

    def as_json(self) -> dict[str, Any]:
        """plan.json before anything is measured."""
        return self.bill.as_json() | self.seconds

    def table(self, recipe: Recipe, base: Base, adapters: Adapters, data: Dataset) -> Table:
        """The decisions and the bill, for people."""
        table = Table(title="the plan", title_justify="left", show_header=False, box=None, padding=(0, 2))
        parameters = base_parameters(base, adapters)
        trained = adapters.count()
        rate = f"{self.learning_rate:g}" + (" (by model size)" if recipe.train.learning_rate == "auto" else "")
        stored = recipe.model.quantization.format if recipe.model.quantization else "dense"
        rows = [
            ("model", f"{base.identity.architecture}, {show_count(parameters)} parameters, {stored} weights"),
            ("computes in", f"{str(base.compute_dtype).removeprefix('torch.')} on {base.device}"),
            ("attention", str(base.model.config._attn_implementation)),
            ("engine", self.engine.describe()),
            ("trains", f"{recipe.adapter.method}, {trained:,} parameters ({100 * trained / parameters:.2f} %)"),
            (
                "data",
                f"{len(data.train):,} examples, {len(data.validation):,} held out, at most {data.max_length} tokens",
            ),
            ("steps", f"{self.steps.total}, in micro batches of {self.micro_batch_tokens:,} tokens"),
            ("scale", scale_of(adapters)),
            ("learning rate", rate),
        ]
        for name, value in rows:
            if value is not None:
                table.add_row(name, value)
        for line in self.bill.lines:
            table.add_row(f"[dim]{line.name}[/]", f"[dim]{show_bytes(line.bytes)}  {line.note}[/]")
        table.add_row("memory", f"{show_bytes(self.bill.peak_bytes)} at the peak, estimated")
        return table


@contextmanager
def claimed(folder: RunFolder, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Inside, the folder is this process's alone: checked, made and locked.

    What was made here is taken away again if the run fails before it has written anything. Raises TopcoatError for a
    folder that is not free, cannot be continued, or is being written by another process.
    """
    check = continue_run if resume else open_run
    missing = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    check(folder, recipe)
    try:
        with RunLock(folder.path) as lock:
            check(folder, recipe)  # again: another run may have begun and ended here meanwhile
            sweep_temporaries(folder.path)
            try:
                yield
            except BaseException:
                if missing and os.listdir(folder.path) == [folder.lock.name]:
                    lock.remove()
                raise
    except BaseException:
        with suppress(OSError):  # the first that is not empty, or that another process uses by now
            for path in missing:
                path.rmdir()
        raise


def open_run(folder: RunFolder, recipe: Recipe) -> None:
    """A new run: the folder must be free. Raises TopcoatError if it is not."""
    folder.require_free()
    make_folder(folder.path)


def make_folder(path: Path) -> None:
    """Make the run's folder. Raises TopcoatError naming what stands in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TopcoatError(
            f"the folder {path} cannot be made: {error.strerror}",
            where="output",
            fix="name a folder this user may write to",
        ) from error


def continue_run(folder: RunFolder, recipe: Recipe) -> None:
    """A run to go on with: it must be there, and started from the same recipe. Raises TopcoatError if not."""
    if folder.lock.is_file() and not folder.recipe.exists():
        open_run(folder, recipe)  # it died while the model was loading: nothing is lost, and nothing is there
        return
    folder.require_run()
    require_same_recipe(load_recipe(folder.recipe, check_files=False), recipe, str(folder.recipe))


def refuse_impossible(recipe: Recipe) -> None:
    """Raises TopcoatError for what no matrix of the model can have, where its files are here: nothing is loaded for it.

    A model that has yet to come from the hub, or of a kind that is not in the table, is asked when it is loaded.
    """
    found = shapes_here(recipe.model.path)
    if found is not None:
        labelled = recipe.train.objective in LABELLED
        require_possible(found, recipe.adapter, recipe.model.quantization, labelled=labelled)


def plan_run(recipe: Recipe, base: Base, adapters: Adapters, data: Dataset, runtime_bytes: int) -> RunPlan:
    """Everything the recipe left to be decided, decided here."""
    settings = recipe.train
    require_device(settings, base.device.type)
    budget = micro_batch_tokens(settings.micro_batch_tokens, data.max_length)
    steps = RunSteps(data, recipe, budget)
    rate = settings.learning_rate
    if rate == "auto":
        rate = default_learning_rate(recipe.adapter, base_parameters(base, adapters))
    worst = steps.worst()
    positions = OBJECTIVES[settings.objective].positions(worst)
    tokens = worst.input_ids.numel()  # padding computes as well
    needed = needed_rows(positions, tokens)
    rows, targets = tokens if needed is None else len(needed), len(positions)
    if settings.cuda_graphs and recipe.data.packing:  # padded to one of few shapes
        shape = shape_of(worst, len(positions), budget)
        tokens, rows, targets = shape.tokens, shape.asked, shape.asked
    counts = loaded_counts(base.model, adapters.parameters())
    if base.head is not None:
        counts = replace(counts, vocab=len(base.head.names))
    computed = tokens + steps.virtual_tokens * len(spans(worst))
    setup = Setup(
        tokens=computed,
        rows=rows,
        targets=targets,
        element_bytes=base.compute_dtype.itemsize,
        optimizer=settings.optimizer,
        runtime_bytes=runtime_bytes,
        product_bytes=_products(base, data, steps, computed, by_hand=True),
    )
    sizes = block_sizes(base.model)
    if settings.cuda_graphs and sizes is not None:
        setup = replace(setup, graph_bytes=graph_bytes(counts, setup, sizes[0]))
    if base.device.type == "cuda":  # what is free there leaves the process and its context out already
        setup = replace(setup, runtime_bytes=0, working_bytes=0, rounding=ROUNDING)
    free = free_memory(base.device)
    room = None if free is None else activation_room(counts, setup, free)
    engine = choose_engine(base, adapters, settings.recompute, data.train[0].input_ids, tokens, room, rows)
    require_graphs(recipe, base, engine)
    engine = replace(engine, graphs=settings.cuda_graphs)
    counts = replace(counts, blocks=fused_blocks(engine.fused) if engine.fused else None)
    built = _products(base, data, steps, computed, by_hand=engine.fused is not None)
    setup = replace(setup, policies=engine.policies, recomputed=engine.checkpointing, product_bytes=built)
    return RunPlan(
        steps=steps,
        bill=bill_of(counts, setup),
        learning_rate=rate,
        micro_batch_tokens=budget,
        evaluate_every=recipe.evaluate.every or max(1, round(steps.total / EVALUATIONS)),
        engine=engine,
        seconds=predicted_seconds(recipe, base, adapters, data, counts, engine, steps.total),
    )


def _products(base: Base, data: Dataset, steps: RunSteps, tokens: int, *, by_hand: bool) -> int:
    """What oneDNN's products take, with or without the hand-written blocks."""
    if base.device.type != "cpu":
        return 0
    longest, mean = float(data.train.lengths.max()), float(data.train.lengths.mean())
    in_a_step = steps.plan.batch_tokens or steps.plan.batch_size * mean
    batches = steps.total * max(1.0, in_a_step / tokens) + float(data.validation.lengths.sum()) / tokens
    ours = by_hand and amx_library() is not None
    sizes = tokens, longest, mean, NAMES[base.compute_dtype]
    return product_bytes(*sizes, ours=ours, batches=batches, packing=steps.packing)


def scale_of(adapters: Adapters) -> str | None:
    """What multiplies the low-rank updates, and the settings it is made of; None for methods without one."""
    scales = [layer.scale for layer in adapters.layers.values() if isinstance(layer, Lora | AdaLora)]
    if not scales:
        return None
    least, most = f"{min(scales):.4g}", f"{max(scales):.4g}"
    if least != most:
        return f"{least} to {most} by linear, from lora_alpha and r of each"
    config = adapters.config
    if isinstance(config, AdaloraConfig):
        return f"{most} = lora_alpha {config.lora_alpha:g} / init_r {config.init_r}"
    assert isinstance(config, LoraConfig)
    divisor = f"sqrt(r {config.r})" if config.use_rslora else f"r {config.r}"
    return f"{most} = lora_alpha {config.lora_alpha:g} / {divisor}"


def base_parameters(base: Base, adapters: Adapters) -> int:
    """Parameters of the base model, a tied one counted once, whatever format they are stored in."""
    ours = {id(p) for p in adapters.parameters().values()} if not isinstance(adapters.config, FullConfig) else set()
    dense = sum(p.numel() for p in base.model.parameters() if id(p) not in ours)
    linears = [m for m in base.model.modules() if isinstance(m, FrozenLinear)]
    biases = sum(m.bias.numel() for m in linears if m.bias is not None)
    stored = [m.weight_state for m in base.model.modules() if isinstance(m, FrozenLinear | FrozenEmbedding)]
    shapes = {next(iter(q.tensors.values())).data_ptr(): q.shape for q in stored}
    return dense + biases + sum(rows * columns for rows, columns in shapes.values())


def free_memory(device: torch.device) -> int | None:
    """Bytes a run may take on `device`, what this process holds already included; None where it cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)  # what the cache holds can be used again
    available = available_memory_bytes()
    return None if available is None else available + memory_bytes(device)
