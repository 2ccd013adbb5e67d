"""The adapter's README.md: a model card with the front matter that model hubs read, and the figures of the run.

Front matter: https://huggingface.co/docs/hub/model-cards (base_model, library_name, pipeline_tag, license, tags).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from topcoat.model.settings import HUB_ID
from topcoat.report.facts import facts, show
from topcoat.report.labels import CONSTANT, has_labels, label_scores, label_verdict
from topcoat.report.scores import exact_match, show_interval, show_share

MOST_SAMPLES = 3
"""Samples on the card; report.html has more."""
LOADED_BY_PEFT = ("lora", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")
"""Methods whose card says how PEFT loads the adapter: those that are used so, rather than merged."""


class RunFacts(TypedDict, total=False):
    """What a card is written from. Only `name` and `base_model` must be there; the rest is left out where unknown."""

    name: str
    """Name of the adapter, such as the run folder's."""
    base_model: str
    """Hub id or path of the base, as the user wrote it."""
    license: str | None
    """Licence of the base, as its own card names it."""
    method: str
    """Adapter method: lora, full."""
    recipe: Mapping[str, Any]
    """The resolved recipe as plain dicts."""
    results: Mapping[str, Any]
    """results.json."""
    receipt: Mapping[str, Any]
    """receipt.json."""


def model_card(run: RunFacts) -> str:
    """The card as Markdown with YAML front matter."""
    results = run.get("results") or {}
    parts = [
        _front_matter(run),
        f"# {_line(run['name'])}",
        f"{_what(run)} {_code(run['base_model'])}, trained with Topcoat.",
        _scores(results),
        _use(run),
        _facts_table("Training", _training(run)),
        _facts_table("Data", results.get("data") or {}),
        _samples(results),
        _facts_table("Identity", run.get("receipt") or {}),
        "Loaded on another base than the one named here, the adapter computes something else: compare the "
        "fingerprints first."
        if run.get("receipt") and _is_adapter(run)
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_adapter(run: RunFacts) -> bool:
    return run.get("method", "lora") != "full"


def _what(run: RunFacts) -> str:
    return "An adapter for" if _is_adapter(run) else "A full fine-tuning of"


def _front_matter(run: RunFacts) -> str:
    """YAML whose strings are written as JSON, which YAML reads as they are whatever signs they hold."""
    method = run.get("method", "lora")
    values: dict[str, Any] = {}
    if HUB_ID.fullmatch(run["base_model"]) and not Path(run["base_model"]).exists():
        values["base_model"] = run["base_model"]  # hubs refuse a path, and it would name someone's machine
    task = "text-classification" if has_labels(run.get("results") or {}) else "text-generation"
    values |= {"library_name": "peft" if _is_adapter(run) else "transformers", "pipeline_tag": task}
    if run.get("license"):
        values["license"] = run["license"]
    values["tags"] = [method, "topcoat"]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _scores(results: Mapping[str, Any]) -> str:
    """The table of base against adapter, and the sentence that says what it proves."""
    match = exact_match(results)
    lines = []
    if match:
        cells = [
            "not measured" if right is None else f"{show_share(right, rows)} ({show_interval(right, rows)})"
            for right, rows in ((match.base, match.rows), (match.adapter, match.rows))
        ]
        lines.append(f"| exact match (95 % interval) | {cells[0]} | {cells[1]} |")
    perplexities = [(results.get(who) or {}).get("perplexity") for who in ("base", "adapter")]
    if perplexities[1] is not None:
        base, adapter = ("not measured" if value is None else show("", value) for value in perplexities)
        lines.append(f"| perplexity | {base} | {adapter} |")
    if has_labels(results):
        for score in label_scores(results):
            by = {line["who"]: line["value"] for line in score["lines"]}
            lines.append(f"| {score['title']} | {by.get(CONSTANT, 'not measured')} | {by['adapter']} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "## Scores",
            "",
            match.verdict if match else label_verdict(results) or "Measured on held-out rows.",
            "",
            f"| | {CONSTANT if has_labels(results) else 'base'} | adapter |",
            "| --- | --- | --- |",
            *lines,
        ]
    )


def _use(run: RunFacts) -> str:
    if run.get("method", "lora") not in LOADED_BY_PEFT:
        return ""
    kind, config = "AutoModelForCausalLM", []
    base = json.dumps(run["base_model"])
    if has_labels(run.get("results") or {}):  # the folder's config.json names the labels
        kind, config = "AutoModelForSequenceClassification", ["AutoConfig"]
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from peft import PeftModel",
            f"from transformers import {', '.join([*config, kind])}",
            "",
            *(['config = AutoConfig.from_pretrained("path/to/this/folder")'] if config else []),
            f"base = {kind}.from_pretrained({base}{', config=config' if config else ''})",
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
            "```",
        ]
    )


def _training(run: RunFacts) -> dict[str, Any]:
    """The settings a reader of the card asks for first; the recipe file has them all."""
    recipe = run.get("recipe") or {}
    chosen: dict[str, Any] = {}
    chosen |= recipe.get("adapter") or {}
    train = recipe.get("train") or {}
    names = ("epochs", "max_steps", "batch_size", "batch_tokens", "learning_rate", "lr_scheduler_type")
    chosen |= {name: train[name] for name in names if name in train}
    quantization = (recipe.get("model") or {}).get("quantization")
    if quantization:
        chosen["quantization"] = quantization
    if "seed" in recipe:
        chosen["seed"] = recipe["seed"]
    if (run.get("results") or {}).get("train_seconds") is not None:
        chosen["training_seconds"] = run["results"]["train_seconds"]
    return chosen


def _facts_table(title: str, values: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts(values)]
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *lines]) if lines else ""


def _samples(results: Mapping[str, Any]) -> str:
    shown = []
    for sample in (results.get("samples") or [])[:MOST_SAMPLES]:
        for who in ("prompt", "base", "adapter"):
            if sample.get(who) is not None:
                text = sample[who] if isinstance(sample[who], str) else json.dumps(sample[who], ensure_ascii=False)
                shown.append(f"{who}:\n\n{_fenced(text)}")
    return "\n\n".join(["## Samples", *shown]) if shown else ""


def _line(text: str) -> str:
    """`text` on one line, its HTML and Markdown signs taken as they are."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return _line(text).replace("&", "&amp;")


def _code(text: str) -> str:
    """Inline code: the fence is longer than any run of backticks inside."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
