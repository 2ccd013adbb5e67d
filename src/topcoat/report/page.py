"""report.html: one page that tells what a run did, from the files of its folder and nothing else.

The page stands alone: no script, no font, no image from elsewhere, and a content policy that forbids them. All text
from the run goes through the template's escaping, since an answer or a data file may hold any HTML. A file that is
missing (the run was cut short, or nothing was merged) leaves out its part of the page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from topcoat.files import write_file
from topcoat.json_files import read_json_object
from topcoat.report.bill import bill
from topcoat.report.curves import SMOOTH_FROM, loss_curves, points, small_curve
from topcoat.report.facts import facts, show
from topcoat.report.labels import label_rows, label_scores, label_verdict
from topcoat.report.ranks import rank_pictures
from topcoat.report.scores import exact_match, show_interval, show_share, wilson
from topcoat.training.metrics import read_metrics
from topcoat.units import show_bytes, show_count, show_seconds

TEMPLATE = Path(__file__).parent / "report.html.jinja"
FIRST_SAMPLES = 5
"""Samples shown at once, right or wrong."""
MOST_MISTAKES = 50
"""Further answers shown that are not equal to their reference; results.json holds the rest."""

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; an empty value stands for a file that is not there."""

    name: str
    recipe: str
    receipt: Json
    plan: Json
    metrics: list[Json]
    samples: list[Json]
    results: Json


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder from what lies there, and return its path."""
    page = render(read_run(run_folder))
    path = run_folder / "report.html"
    write_file(path, page)
    return path


def read_run(folder: Path) -> RunFiles:
    """The files of a run folder. A last line that was torn by a crash is left out.

    Raises TopcoatError: a file that is there cannot be read as what it should be.
    """
    recipe = folder / "recipe.yaml"
    return RunFiles(
        name=folder.resolve().name,
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        receipt=_json(folder / "receipt.json"),
        plan=_json(folder / "plan.json"),
        metrics=_json_lines(folder / "metrics.jsonl"),
        samples=_json_lines(folder / "samples.jsonl"),
        results=_json(folder / "results.json"),
    )


def _json(path: Path) -> Json:
    if not path.exists():
        return {}
    return read_json_object(path, "restore the file, or move it away: the report leaves out what is missing")


def _json_lines(path: Path) -> list[Json]:
    return read_metrics(path) if path.exists() else []


def render(run: RunFiles) -> str:
    """The page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    match = exact_match(run.results)
    return template.render(
        name=run.name,
        subtitle=_subtitle(run),
        notices=_notices(run),
        verdict=match.verdict if match else label_verdict(run.results),
        scores=_scores(run.results),
        labels=label_rows(run.results),
        **_curves(run.metrics),
        ranks=rank_pictures(run.metrics),
        speed=_speed(run),
        bill=bill(run.plan),
        data=list(facts(run.results.get("data") or {})),
        **_samples(run.results),
        growth=_growth(run.samples),
        merge=list(facts(run.results.get("merge") or {})),
        identity=list(facts(run.receipt)),
        recipe=run.recipe,
    )


def _subtitle(run: RunFiles) -> str:
    steps = len(points(run.metrics, "loss"))
    seconds = run.results.get("train_seconds")
    parts = [f"{steps:,} steps" if steps else "", f"trained in {show_seconds(seconds)}" if seconds else ""]
    return ", ".join(part for part in parts if part)


def _notices(run: RunFiles) -> list[str]:
    notices = []
    if not run.results:
        notices.append("This run has no results yet: it is still training, or it was stopped before its evaluation.")
    broken = [line.get("step") for line in run.metrics if _not_finite(line.get("loss"))]
    if broken:
        notices.append(f"The loss was not a finite number in {len(broken)} steps, first in step {broken[0]}.")
    return notices


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _scores(results: Json) -> list[Json]:
    """One entry for each figure measured, with a line for the base and one for the adapter."""
    sides = [(who, results[who]) for who in ("base", "adapter") if isinstance(results.get(who), Mapping)]
    scores = []
    match = exact_match(results)
    if match:
        found = [(who, match.base if who == "base" else match.adapter) for who, _ in sides]
        lines = [_match_line(who, right, match.rows) for who, right in found if right is not None]
        scores.append({"title": "Exact match", "better": "higher is better", "lines": lines})
    scores += label_scores(results)
    perplexities = [(who, side["perplexity"]) for who, side in sides if side.get("perplexity") is not None]
    if perplexities:
        rows = (results.get("data") or {}).get("validation_examples")  # all of them; exact match may ask fewer
        detail = f"{rows:,} rows" if isinstance(rows, int) else ""
        lines = [{"who": who, "value": show("", value), "detail": detail, "low": None} for who, value in perplexities]
        scores.append({"title": "Perplexity", "better": "lower is better", "lines": lines})
    return scores


def _match_line(who: str, right: int, rows: int) -> Json:
    low, high = wilson(right, rows)
    return {
        "who": who,
        "value": show_share(right, rows),
        "detail": f"{right} of {rows} rows; 95 % interval {show_interval(right, rows)}",
        "low": round(100 * low, 2),
        "width": round(100 * (high - low), 2),
        "at": round(100 * right / max(rows, 1), 2),
    }


def _curves(metrics: list[Json]) -> Json:
    """The drawings of the page, each as markup, or None where nothing was measured."""
    train, validation = points(metrics, "loss"), points(metrics, "validation_loss")
    if not train and not validation:
        return {"loss_wide": None, "loss_narrow": None, "loss_note": "", "small_curves": []}
    small = [("learning_rate", "learning rate"), ("grad_norm", "gradient norm, before clipping")]
    curves = [(name, label, points(metrics, name)) for name, label in small]
    note = "The pale line is each step, the strong one its moving average." if len(train) >= SMOOTH_FROM else ""
    return {
        "loss_wide": Markup(loss_curves(train, validation, name="loss over the steps", inches=(8, 3.2))),
        "loss_narrow": Markup(loss_curves(train, validation, name="loss over the steps, narrow", inches=(4, 3))),
        "loss_note": note,
        "small_curves": [Markup(small_curve(curve, label=label, name=name)) for name, label, curve in curves if curve],
    }


def _speed(run: RunFiles) -> list[tuple[str, str]]:
    """Lines on time and throughput, from the steps of metrics.jsonl."""
    steps = [line for line in run.metrics if "loss" in line]
    lines: list[tuple[str, str]] = []
    if run.results.get("train_seconds") is not None:
        lines.append(("training", show_seconds(run.results["train_seconds"])))
    if not steps:
        return lines
    lines.append(("steps", f"{len(points(steps, 'loss')):,}"))
    for key, label in (("tokens", "tokens"), ("target_tokens", "trained tokens")):
        if counted := points(steps, key):
            lines.append((label, show_count(sum(value for _, value in counted))))
    if speeds := [value for _, value in points(steps, "tokens_per_s")]:
        lines.append(("median speed", f"{statistics.median(speeds):,.0f} tokens/s"))
    if memory := [value for _, value in points(steps, "memory_bytes")]:
        lines.append(("most memory of a step", show_bytes(max(memory))))
    return lines


def _text(value: Any) -> str:
    """A sample's field as text: a chat (a list of messages) one message a line."""
    if isinstance(value, list):
        return "\n".join(
            f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in value
        )
    return "" if value is None else str(value)


def _samples(results: Json) -> Json:
    """The first samples, and of the others those that the adapter answers wrongly."""
    samples = [_sample(sample) for sample in results.get("samples") or []]
    wrong = [sample for sample in samples[FIRST_SAMPLES:] if sample["answers"][-1]["equal"] is False]
    return {"samples": samples[:FIRST_SAMPLES], "mistakes": wrong[:MOST_MISTAKES], "mistakes_count": len(wrong)}


def _sample(sample: Json) -> Json:
    """Prompt and answers; an answer is marked where there is a reference to compare it with."""
    reference = _text(sample.get("reference"))
    answers: list[Json] = [{"who": "reference", "text": reference, "equal": None}]
    for who in ("base", "adapter"):
        if sample.get(who) is not None:
            text = _text(sample[who])
            answers.append(
                {"who": who, "text": text, "equal": text.strip() == reference.strip() if reference else None}
            )
    return {"prompt": _text(sample.get("prompt")), "answers": answers}


def _growth(samples: list[Json]) -> list[Json]:
    """The answers to each prompt of samples.jsonl, in the order of their steps."""
    prompts: dict[str, Json] = {}
    for line in samples:
        prompt = _text(line.get("prompt"))
        entry = prompts.setdefault(prompt, {"prompt": prompt, "reference": _text(line.get("reference")), "answers": {}})
        entry["answers"][line.get("step", 0)] = _text(line.get("answer"))  # the later line of a step counts
    return [entry | {"answers": sorted(entry["answers"].items())} for entry in prompts.values()]
