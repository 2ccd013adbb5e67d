"""One training run of an experiment, by the product's own parts: loading, adapter, engine, batches, loss and loop.

What an experiment needs and a run of the command line does not give is measured here: the loss of every validation row,
before and after, so that two arms can be compared row by row; and what is left after the weights were rounded again.
Nothing is written: an arm that is interrupted begins anew.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.papers.intervals import mean_loss
from bench.papers.rounding import rounded_losses
from bench.papers.row_losses import row_losses
from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import FullConfig
from topcoat.data.batches import Batch
from topcoat.data.load import Dataset, load_data
from topcoat.errors import Refused
from topcoat.evaluation.answers import answer
from topcoat.model.load import Base, load_model
from topcoat.recipe.load import recipe_from_dict
from topcoat.recipe.schema import Recipe
from topcoat.runs.attaching import attach_to, optimizer_for
from topcoat.runs.compute import make_loss, precision
from topcoat.runs.opening import RunPlan, plan_run
from topcoat.runs.scoring import Evaluating, question
from topcoat.training.loop import Training, train
from topcoat.training.loss_scale import LossScale
from topcoat.training.memory import memory_bytes
from topcoat.training.step_rules import step_rule

ENDLESS = 1 << 30

Row = dict[str, Any]


class Never:
    """The loop's stop flag: an arm goes to its end or is lost."""

    stop: object | None = None


def recipe_of(spec: Mapping[str, Any]) -> Recipe:
    """The recipe of an arm; its specification has the recipe's own words."""
    given = {"batch_size": 16, "epochs": 1.0, "recompute": "none", **spec["train_settings"]}
    model: Row = {"path": spec["model"], "device": "cpu"}
    if spec.get("quantization"):
        model["quantization"] = spec["quantization"]
    return recipe_from_dict(
        {
            "model": model,
            "adapter": spec["adapter"],
            "data": {"train": spec["train"], "validation": spec["validation"], "cache": False},
            "train": given,
            "evaluate": {"max_new_tokens": spec.get("max_new_tokens", 24)},
            "output": "nowhere",
            "seed": spec["seed"],
        }
    )


def arm(spec: Mapping[str, Any]) -> Row:
    """A job: train what `spec` says and measure it; see `Lab.train` for what it holds."""
    recipe = recipe_of(spec)
    base = load_model(recipe.model)
    data = load_data(
        recipe.data,
        base.tokenizer,
        context_length=base.context_length,
        seed=recipe.seed,
        vocab_rows=base.vocab_rows,
    )
    adapters = attach_to(base, data, recipe)
    plan = plan_run(recipe, base, adapters, data, 0)
    loss = make_loss(base, adapters, plan.engine.fused, recipe.train)
    found: Row = {"trained": adapters.count(), "engine": plan.engine.describe(), "steps": plan.steps.total}
    found["seed"] = recipe.seed
    if spec.get("before"):
        with nullcontext() if isinstance(recipe.adapter, FullConfig) else adapters.off():
            found["before"] = mean_loss(row_losses(base, adapters, data, plan.engine.fused))
    found |= trained(recipe, base, adapters, plan, loss)
    if "diverged" in found:
        return {**found, "loss": math.nan, "losses": []}
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["losses"] = row_losses(base, adapters, data, plan.engine.fused)
    found["loss"] = mean_loss(found["losses"])
    ranks = [layer.rank for layer in adapters.layers.values() if isinstance(layer, AdaLora)]
    found |= {"ranks": sum(ranks), "layers": ranks} if ranks else {}
    if spec.get("answers"):
        found |= answered(recipe, base, adapters, data, spec["answers"])
    if spec.get("round_to"):
        found["rounded"] = rounded_losses(spec["round_to"], recipe, base, adapters, data)
    return found


def trained(
    recipe: Recipe, base: Base, adapters: Adapters, plan: RunPlan, loss: Callable[[Batch], Tensor]
) -> dict[str, Any]:
    """Run the loop; the training loss and the speed, or that the loss is no number any more: the rate was too high."""
    steps: list[Row] = []
    base.model.train()
    optimizer = optimizer_for(adapters, recipe, Path("nowhere"))
    began = time.perf_counter()
    run = Training(
        parameters=adapters.parameters(),
        loss=loss,
        steps=plan.steps,
        settings=recipe.train,
        peak_learning_rate=plan.learning_rate,
        seed=recipe.seed,
        optimizer=optimizer,
        scale=LossScale.for_dtype(base.compute_dtype),
        evaluate_every=ENDLESS,
        validate=lambda step: None,
        save=lambda best: None,
        record=steps.append,
        explain=lambda batch: f"rows {batch.rows}",
        memory=lambda: memory_bytes(base.device),
        stop=Never(),
        rule=step_rule(adapters, plan.steps.total),
    )
    try:
        train(run)
    except Refused as why:
        if not steps:  # nothing was learned at all: no matter of the rate
            raise
        return {"diverged": str(why)}
    tokens = sum(step["tokens"] for step in steps)
    last = [step["loss"] for step in steps[-max(1, len(steps) // 4) :]]
    seconds = time.perf_counter() - began
    return {"tokens": tokens, "tokens_per_s": tokens / seconds, "train_loss": sum(last) / len(last)}


def answered(recipe: Recipe, base: Base, adapters: Adapters, data: Dataset, count: int) -> Row:
    """Which of the first `count` validation rows are answered word for word, and their share."""
    questions = [question(example, base) for example in islice(data.validation, count)]
    with Evaluating(base.model), precision(base, adapters)():
        said = answer(base.model, base.tokenizer, questions, data.renderer.stop_ids, recipe.evaluate.max_new_tokens)
    hits = [a.strip() == q.reference.strip() for a, q in zip(said, questions, strict=True)]
    return {"answers": hits, "exact_match": sum(hits) / len(hits)}
