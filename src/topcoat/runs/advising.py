"""From what is known of a task to a decision: facts of model, data and device are added to those that were told, and
`recipe/advice.yaml` is followed. What fits the device is the plan's word, for full tuning, LoRA and QLoRA alike.

No torch: shapes and sizes decide, and of this machine's CPU only the memory counts, which is not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from topcoat.adapters.settings import AdapterConfig, FullConfig, LoraConfig
from topcoat.data.row_formats import recognise
from topcoat.data.rows import iter_rows
from topcoat.errors import TopcoatError
from topcoat.planning.architecture import Architecture
from topcoat.planning.counts import counts_of
from topcoat.planning.data_size import BYTES_PER_TOKEN, DataSize, data_size
from topcoat.planning.devices import Device, find_device, parse_bytes
from topcoat.planning.estimate import estimate
from topcoat.planning.machine import Machine, machine
from topcoat.planning.model_files import find_architecture
from topcoat.planning.request import Request
from topcoat.planning.search import Candidate, search
from topcoat.quant.settings import DenseConfig, Nf4Config
from topcoat.recipe.advice import Advice, Decision, Fact, decide, load_advice
from topcoat.training.settings import TrainSettings
from topcoat.units import show_bytes

WIDEST = 256
"""Rank above which full tuning is the alternative."""
ASSUMED_LENGTH = 1024
FREE_CHANGES = 10
"""Weight of a plan's change from which the result of training would be another one."""
METHODS: dict[str, tuple[AdapterConfig, str]] = {
    "full": (FullConfig(), "quantization: null"),
    "lora": (LoraConfig(), "quantization: null"),
    "qlora": (LoraConfig(), "quantization: {format: nf4, double_quant: true}"),
}
"""Answer -> its adapter, and the line that stores its frozen weights."""


@dataclass(frozen=True)
class Told:
    """What was asked or given."""

    task: frozenset[str] = frozenset()
    prompted: str | None = None
    rows: int | None = None
    quality: str | None = None
    changes: str | None = None
    serve: str | None = None
    model: str | None = None
    data: str | None = None
    device: str = "auto"
    budget: str | None = None
    recipe: bool = False
    """Model and data are those of a recipe."""


@dataclass(frozen=True)
class Line:
    """A setting of the recipe and why."""

    key: str
    """Dotted."""
    text: str
    """As it stands in the recipe."""
    reason: str


@dataclass(frozen=True)
class Advised:
    """The decision, the facts it was made from, and what follows for the recipe."""

    decision: Decision
    facts: dict[str, Fact]
    device: Device
    architecture: Architecture | None = None
    lines: tuple[Line, ...] = ()
    fits: dict[str, Candidate | None] = field(default_factory=dict)
    """Method -> the way to run it that fits; None where none does."""

    @property
    def tunes(self) -> bool:
        """Tuning is part of the answer."""
        return "tune" in self.decision.answers["approach"]

    @property
    def method(self) -> str | None:
        """lora, qlora or full, where tuning is advised and the facts decide which."""
        answer = self.decision.answers.get("method")
        return answer if answer in METHODS else None


def advise(told: Told) -> Advised:
    """Follow the rules. Raises TopcoatError for a word that is no answer, and for a model, file, device or budget that
    cannot be used."""
    advice = load_advice()
    told = _checked(told, advice)
    device, memory = _device(told)
    size, form = _data_facts(told.data)
    facts = _told_facts(told, size, form)
    decision = decide(advice, facts, ("approach", "before"))
    architecture = find_architecture(told.model) if told.model else None
    made = Advised(decision, facts, device, architecture)
    if not made.tunes:
        return made
    fits = {} if architecture is None else _what_fits(architecture, device, memory, size, told)
    if architecture is not None:
        facts |= _model_facts(architecture, size)
    facts |= {f"{method}_fits": "yes" if found else "no" for method, found in fits.items()}
    return _with_method(replace(made, fits=fits), advice)


def _checked(told: Told, advice: Advice) -> Told:
    """The same with `task` as a set, whatever it came as. Raises TopcoatError for what no question takes."""
    for name, question in advice.questions.items():
        value = getattr(told, name)
        if value is None:
            continue
        if question.number:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise TopcoatError(f"{value!r} is no number of {name}", name, "give a whole number such as 500")
        elif name == "task":
            words = [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value)
            for word in words:
                question.require(word, name)
            told = replace(told, task=frozenset(words))
        else:
            question.require(value, name)
    return told


def _with_method(made: Advised, advice: Advice) -> Advised:
    """The same with the stages that follow once tuning is decided."""
    method = decide(advice, made.facts, ("method",))
    facts = {**made.facts, "method": method.answers["method"]}
    rest = decide(advice, facts, ("settings", "later"))
    decision = Decision({**made.decision.answers, **method.answers}, (*made.decision.steps, *method.steps, *rest.steps))
    made = replace(made, decision=decision, facts=facts)
    return replace(made, lines=tuple(_lines(made)))


def _lines(made: Advised) -> list[Line]:
    """Settings that the decision writes: how weights are stored, those of the rules, and those of the plan."""
    if made.method is None:
        return []
    [rule] = made.decision.matched("method")
    adapter, stored = METHODS[made.method]
    lines = [Line("model.quantization", stored, rule.reason), Line("adapter.method", f"method: {adapter.method}", "")]
    for rule in made.decision.matched("settings"):
        values = {key: value for key, value in rule.set.items() if _applies(key, adapter)}
        for number, (key, value) in enumerate(values.items()):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            reason = rule.reason if number == 0 else "see above"
            lines.append(Line(key, f"{key.rpartition('.')[2]}: {text}", reason))
    found = made.fits[made.method]
    assert found is not None
    peak, budget = show_bytes(found.estimate.peak_bytes), show_bytes(found.estimate.request.budget_bytes)
    for change in " ".join(found.changes).split():  # one change may write two settings
        key, _, value = change.partition("=")
        lines.append(Line(key, f"{key.rpartition('.')[2]}: {value}", f"so that it fits: {peak} of {budget}"))
    return lines


def _applies(key: str, adapter: AdapterConfig) -> bool:
    return not (key.startswith("adapter.") and isinstance(adapter, FullConfig))


def _told_facts(told: Told, size: DataSize | None, form: str | None) -> dict[str, Fact]:
    text = None if form is None else "yes" if form == "text" else "no"
    return {
        "task": told.task,
        "prompted": told.prompted,
        "rows": told.rows if told.rows is not None else size.rows if size else None,
        "quality": told.quality,
        "changes": told.changes,
        "serve": told.serve,
        "recipe": "yes" if told.recipe else None,
        "tokens": round(size.rows * size.mean_tokens) if size else None,
        "text": text,
    }


def _model_facts(a: Architecture, size: DataSize | None) -> dict[str, Fact]:
    """Parameters, and whether the widest adapter holds the data."""
    widest = counts_of(a, LoraConfig(r=WIDEST), DenseConfig()).trained_numbers
    held = None if size is None else "above" if size.rows * size.mean_tokens > widest else "within"
    return {"parameters": a.parameters, "capacity": held}


def _data_facts(data: str | None) -> tuple[DataSize | None, str | None]:
    """Rows and tokens of a file, about, and the shape of its rows. Raises TopcoatError for one that is not readable."""
    if data is None:
        return None, None
    rows = iter_rows(data)
    form = recognise(set(next(rows).values))
    size = data_size([data])
    if size is None:  # not line by line: every row is looked at
        lengths = [sum(len(str(value)) for value in row.values.values()) // BYTES_PER_TOKEN for row in iter_rows(data)]
        size = DataSize(len(lengths), sum(lengths) / len(lengths), max(lengths), "")
    return size, form


def _what_fits(
    a: Architecture, device: Device, memory: int, size: DataSize | None, told: Told
) -> dict[str, Candidate | None]:
    """For each method the way that fits and leaves the result as it is, if there is one."""
    longest = ASSUMED_LENGTH if size is None else max(8, size.longest_tokens)
    fits: dict[str, Candidate | None] = {}
    for name, (adapter, _) in METHODS.items():
        request = Request(
            architecture=a,
            adapter=adapter,
            quantization=Nf4Config() if name == "qlora" else None,
            train=TrainSettings(),
            compute_dtype="bf16" if device.bf16 else "fp32",
            max_length=min(a.context, longest),
            device=device,
            budget_bytes=memory,
            rows=told.rows if size is None else size.rows,
            mean_tokens=None if size is None else size.mean_tokens,
            longest_tokens=None if size is None else size.longest_tokens,
        )
        made = estimate(request)
        nearest = Candidate(made, (), 0) if made.fits else search(request).smallest_change
        fits[name] = nearest if nearest is not None and nearest.weight < FREE_CHANGES else None
    return fits


def _device(told: Told) -> tuple[Device, int]:
    """The device that is meant, and its memory. Raises TopcoatError for one that is not known."""
    from topcoat.runs.planning import HERE, gpu_free_bytes, gpu_here, known_gpu

    limit = None if told.budget is None else parse_bytes(told.budget)
    asked = told.device.strip().lower()
    if asked not in HERE:
        device = find_device(told.device)
        return device, limit or device.memory_bytes
    if asked == "auto" and (described := gpu_here()):
        here = known_gpu(described)
        return here, limit or gpu_free_bytes() or here.memory_bytes
    facts = machine(ask_torch=False)
    cpu = _cpu(facts)
    return cpu, limit or facts.available_bytes or cpu.memory_bytes


def _cpu(facts: Machine) -> Device:
    """This machine's CPU with its memory; its speed is not asked for here, so figures that rank ways are enough."""
    return Device(
        name="cpu",
        says=f"{facts.cpu}, {facts.usable_cores} cores",
        memory_bytes=facts.memory_limit_bytes or facts.memory_bytes or 0,
        peak_bandwidth=1e10,
        peak_flops=1e11,
        peak_flops_fp32=1e11,
        watts=0,
        source="not measured",
        bf16="bf16" in " ".join(facts.cpu_features),
        workspace_bytes=0,
        kind="cpu",
        tiles="amx_bf16" in facts.cpu_features,
    )
