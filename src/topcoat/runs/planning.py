"""A recipe (or a model's name alone) -> its plan: what it takes, how long, and what else would fit. No torch is needed;
only the first plan on a CPU imports it, to measure what the CPU reaches.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topcoat.adapters.settings import LoraConfig
from topcoat.data.cache import cache_folder
from topcoat.data.labels import LABELLED, read_labels
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError
from topcoat.evaluation.settings import AT_ONCE
from topcoat.planning.calibration import cpu_device, cpu_key
from topcoat.planning.data_size import DataSize, data_size
from topcoat.planning.devices import Device, device_in, find_device, parse_bytes
from topcoat.planning.estimate import Estimate, estimate
from topcoat.planning.machine import Machine, machine
from topcoat.planning.model_files import find_architecture, require_weights
from topcoat.planning.possible import require_possible, require_steps
from topcoat.planning.request import Request
from topcoat.planning.residuals import keep_residual, read_residuals, residual_bytes, says
from topcoat.planning.search import Candidate, Found, search
from topcoat.planning.speed import Price, parse_price
from topcoat.recipe.load import load_recipe_with_notes, recipe_from_dict_with_notes
from topcoat.recipe.rules import learned_since
from topcoat.recipe.schema import Recipe
from topcoat.runs.guiding import facts_of_plan
from topcoat.runs.probing import Probe, probe_in_child
from topcoat.runs.room import room_for_text
from topcoat.training.on_device import require_device

HERE = ("auto", "cpu")
"""Devices that are this machine's own."""
ASSUMED_LENGTH = 1024
"""Tokens of an example where neither recipe nor data say."""
NO_DATA = "(no rows)"
"""data.train of a model alone: no file that is read as rows has such a name."""


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on a device, and what else could be done."""

    estimate: Estimate
    found: Found
    notes: tuple[str, ...]
    """What was assumed."""
    price: Price | None = None
    probe: Probe | None = None
    """What was measured for it."""

    @property
    def cost(self) -> tuple[float, float] | None:
        """Money for the whole run, as a lower and an upper bound; None without a price or a number of steps."""
        seconds = self.estimate.speed.run_seconds
        if self.price is None or seconds is None:
            return None
        watts = self.estimate.request.device.watts
        return self.price.of(seconds[0], watts), self.price.of(seconds[1], watts)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        request, change = self.estimate.request, self.found.smallest_change
        return {
            "ok": self.estimate.fits,
            "model": {
                "name": request.architecture.name,
                "kind": request.architecture.kind,
                "parameters": request.architecture.parameters,
            },
            "device": {"name": request.device.name, "says": request.device.says, "source": request.device.source},
            **self.estimate.as_json(),
            "cost": list(self.cost) if self.cost else None,
            "fastest": [_candidate_json(candidate) for candidate in self.found.fastest],
            "smallest_change": _candidate_json(change) if change else None,
            "smallest": _candidate_json(self.found.smallest),
            "larger_device": self.found.larger_device.name if self.found.larger_device else None,
            "proved": not request.architecture.assumed,
            "measured": asdict(self.probe) if self.probe else None,
            "notes": list(self.notes),
        }


def plan(
    subject: Recipe | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    budget: str | None = None,
    price: str | None = None,
    measure: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """What a run takes and whether it fits: of a recipe (a file, a dict, a `Recipe`), or of the defaults on a model.

    A model is its directory, its .gguf file or a well-known name. `device` is auto, cpu, or a name such as rtx4090;
    `budget` an amount such as 6GiB, else what is free; `price` an amount such as 2.49EUR/h or 0.30EUR/kWh. `measure`
    begins the run in a child process for two micro-steps on its longest rows, and corrects the plan by them.

    Raises TopcoatError for a recipe, model, device, budget or price that cannot be used; Refused where a probe ran out
    of memory.
    """
    return plan_recipe(
        *read_subject(subject, overrides), device=device, budget=budget, price=price, measure=measure, say=say
    )


def plan_recipe(
    recipe: Recipe,
    notes: Sequence[str] = (),
    *,
    device: str = "auto",
    budget: str | None = None,
    price: str | None = None,
    measure: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The plan of `recipe`; see `plan`."""
    device = device.strip().lower() if device.strip().lower() in HERE else device
    asked = None if price is None else parse_price(price)
    limit = None if budget is None else parse_bytes(budget)
    architecture = find_architecture(recipe.model.path)
    labelled = recipe.train.objective in LABELLED
    require_possible(architecture, recipe.adapter, recipe.model.quantization, labelled=labelled)
    facts = machine(ask_torch=False)
    named = None if device in HERE else find_device(device)
    if asked and asked.per == "kWh" and named is None and not _gpu_for(recipe, device):
        raise TopcoatError(
            "the power that this CPU draws is not known", "--price", "give a price an hour, such as 0.05EUR/h"
        )
    size = data_size([name for name, _ in recipe.data.train_files])
    if measure and (named is not None or size is None):
        raise TopcoatError(
            "a device that is not this machine cannot be measured" if named else "there are no rows to measure with",
            "--measure",
            "leave --device out" if named else "give a recipe whose data.train is a .jsonl file that is here",
        )
    if measure:
        require_weights(recipe.model.path)
    used = named or _here(_gpu_for(recipe, device), facts, say)
    require_device(recipe.train, used.kind)
    free = None if named else facts.available_bytes if used.kind == "cpu" else gpu_free_bytes()
    key = cpu_key(facts) if used.kind == "cpu" else used.name
    probe = probe_in_child(_by_launches(_on(recipe, device)), say) if measure else None
    if probe is not None and not keep_residual(probe.residual(architecture.name), key, cache_folder()):
        say(f"the cache folder {cache_folder()} cannot be written: later plans will not know of this")
    residuals = [] if named else read_residuals(key, cache_folder())
    request = Request(
        architecture=architecture,
        adapter=recipe.adapter,
        quantization=recipe.model.quantization,
        train=recipe.train,
        compute_dtype=_dtype(recipe.model.compute_dtype, used),
        max_length=_max_length(recipe.data, size, room_for_text(architecture.context, recipe)),
        device=used,
        budget_bytes=limit or free or used.memory_bytes,
        rows=None if size is None else round(size.rows * _trained_share(recipe.data)),
        mean_tokens=None if size is None else size.mean_tokens,
        longest_tokens=None if size is None else size.longest_tokens,
        labelled=None if size is None or recipe.data.loss_on == "all" else size.labelled,
        answer_tokens=recipe.evaluate.max_new_tokens,
        answered=0 if size is None else _answered(recipe),
        attention_by_hand=recipe.model.attention in ("auto", "topcoat"),
        packing=recipe.data.packing,
        outputs=_outputs(recipe),
        residual_bytes=residual_bytes(residuals),
        residual_note=says(residuals) if residuals else "",
    )
    if probe is not None:
        request = probe.correct(request, any_length=recipe.data.max_length == "auto")
    made = estimate(request)
    require_steps(recipe.adapter, made.request.steps)
    guides = map(str, learned_since(recipe, facts_of_plan(made)))
    data = _data_notes(recipe.data, size) if probe is None else [probe.says]
    if probe is None and residuals:
        shares = ", ".join(f"{row.share:+.1%}" for row in residuals)
        data.append(f"corrected by the {says(residuals)} (topcoat plan --measure); they differed by {shares}")
    return Plan(made, search(request), (*notes, *data, *guides, *_notes(request)), asked, probe)


def _on(recipe: Recipe, device: str) -> Recipe:
    """The recipe on the CPU, where the command line asks for it."""
    if device != "cpu":
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "cpu"})})


def read_subject(
    subject: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str]
) -> tuple[Recipe, list[str]]:
    """The recipe in a file, or the defaults on a model by its path or name, with what reading it brought up.

    Raises TopcoatError for what is neither.
    """
    if isinstance(subject, Recipe):
        subject = subject.model_dump(mode="json")
    if isinstance(subject, Mapping):
        return recipe_from_dict_with_notes(dict(subject), "recipe", overrides, check_files=False)
    path, subject = Path(subject), str(subject)
    if path.suffix in (".yaml", ".yml") or (path.is_dir() and (path / "recipe.yaml").is_file()):
        file = path / "recipe.yaml" if path.is_dir() else path
        return load_recipe_with_notes(file, overrides, check_files=False)
    find_architecture(subject)  # says the nearest names before anything is asked of a recipe
    values = {"model": {"path": subject}, "data": {"train": NO_DATA, "validation": None}, "output": "runs/plan"}
    return recipe_from_dict_with_notes(values, "topcoat plan", overrides, check_files=False)


def _by_launches(recipe: Recipe) -> Recipe:
    """The recipe without CUDA graphs: what two micro-steps cannot show, and what a residual must not hold."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"cuda_graphs": False})})


def _gpu_for(recipe: Recipe, device: str) -> str:
    """What this machine's GPU is called, if the recipe or the command line would compute on it; else nothing."""
    return "" if "cpu" in (device, recipe.model.device) else gpu_here()


def _here(described: str, facts: Machine, say: Callable[[str], None]) -> Device:
    """This machine's GPU, or its CPU where `described` is empty. Raises TopcoatError for a GPU not in the table."""
    if not described:
        return cpu_device(facts, cache_folder(), say)
    return known_gpu(described)


def known_gpu(described: str) -> Device:
    """The device of the table that the driver's description means. Raises TopcoatError where there is none."""
    found = device_in(described)
    if found is None:
        raise TopcoatError(
            f"this machine's GPU, {described}, is not in the table of devices",
            "--device",
            "name one like it, and its memory: --device rtx4090 --budget 16GiB",
        )
    return found


def gpu_here(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """What NVIDIA's driver calls the first GPU; empty where there is none."""
    for file in sorted(folder.glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return ""


def gpu_free_bytes() -> int | None:
    """Memory of the first GPU that no process has, as nvidia-smi says; None where it is not here or does not say."""
    asked = ("nvidia-smi", "-i", "0", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(said) * 2**20 if said.isdigit() else None


def _dtype(asked: str, device: Device) -> str:
    return asked if asked != "auto" else "bf16" if device.bf16 else "fp32"


def _max_length(data: DataSettings, size: DataSize | None, context: int) -> int:
    if data.max_length != "auto":
        if data.max_length > context:
            from topcoat.data.overlong import choose_max_length  # raises, in a run's own words

            choose_max_length(data.max_length, context, context)
        return data.max_length
    return min(context, ASSUMED_LENGTH if size is None else size.longest_tokens)


def _outputs(recipe: Recipe) -> int | None:
    """Outputs of the head where labels or numbers are learned. Raises TopcoatError for labels that are none."""
    data, objective = recipe.data, recipe.train.objective
    if objective not in LABELLED:
        return None
    if data.labels is not None:
        return len(data.labels)
    if all(Path(name).is_file() for name, _ in data.train_files):
        return read_labels(data.model_copy(update={"validation": None}), objective).outputs
    return len(data.label_columns) if objective == "regression" else 2


def _trained_share(data: DataSettings) -> float:
    """Share of the rows that are not held out."""
    return 1 - data.validation if isinstance(data.validation, float) else 1.0


def _answered(recipe: Recipe) -> int:
    """Prompts that are answered at once while evaluating."""
    if recipe.data.validation is None:
        return 0
    wanted = recipe.evaluate.rows if "exact_match" in recipe.evaluate.metrics else recipe.evaluate.samples
    return min(AT_ONCE, wanted)


def _data_notes(data: DataSettings, size: DataSize | None) -> list[str]:
    if size is not None:
        return [f"data: {size.says}"]
    length = f"{ASSUMED_LENGTH} tokens" if data.max_length == "auto" else f"{data.max_length} tokens"
    absent = [name for name, _ in data.train_files if name != NO_DATA and not Path(name).is_file()]
    why = f"{absent[0]} is not here" if absent else "the rows have not been read"
    return [f"assumed: examples of {length}, since {why}; no time for the whole run"]


def _notes(request: Request) -> list[str]:
    a, device = request.architecture, request.device
    notes = [f"unproved: {text}" for text in a.assumed]
    if a.experts:
        notes.append(f"assumed: all {a.experts} experts of a block are stored and adapted as linears of their own")
        notes.append("warning: topcoat train refuses mixtures of experts; this plan is for comparison only")
    if isinstance(request.adapter, LoraConfig) and request.adapter.init_lora_weights == "eva":
        notes.append("assumed: every layer has rank r; eva moves ranks between layers and keeps their sum")
    if not device.measured:
        notes.append(f"speed: from the data sheet of {device.says} ({device.source}), not measured")
    if not a.by_hand:
        notes.append("unproved: activations of transformers' own layers are an estimate")
    return notes


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    made = candidate.estimate
    return {
        "changes": list(candidate.changes),
        "peak_bytes": made.peak_bytes,
        "fits": made.fits,
        "step_seconds": list(made.speed.step_seconds),
        "recompute": made.recompute,
    }
