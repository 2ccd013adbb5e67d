"""What a recipe adds to the checks of its data, and the checks a run makes before its first step.

With the recipe's tokenizer the rows are counted in tokens as the run will train them (all of up to 20,000 rows, else an
even sample of as many), and its adapter's parameters are counted on a model without weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from topcoat.adapters.attach import Adapters
from topcoat.adapters.patterns import chosen
from topcoat.adapters.settings import FullConfig, LoraConfig, TargetedConfig
from topcoat.adapters.targets import adaptable_linears
from topcoat.data.batches import ROUND, StepPlan
from topcoat.data.checks.corpus import Lengths, Most, Setting
from topcoat.data.checks.files import check_files
from topcoat.data.checks.leaks import is_memory_test
from topcoat.data.checks.verdict import Found, Verdict, summary
from topcoat.data.columns import columns_of
from topcoat.data.labels import LABELLED
from topcoat.data.load import Dataset
from topcoat.data.overlong import WINDOW, choose_max_length, manner_of, pieces_of
from topcoat.data.pack import best_fit, group_similar
from topcoat.data.progress import Tell, late_bar, silent
from topcoat.data.render import Renderer
from topcoat.data.row_formats import to_conversations
from topcoat.data.rows import SHOWN, BadRows, Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.disk_errors import DiskFull
from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.model.skeleton import build_skeleton
from topcoat.model.source import open_source
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.planning.trained import trained_sizes
from topcoat.quant.dense import DTYPES
from topcoat.recipe.schema import Recipe
from topcoat.runs.guiding import without_silenced
from topcoat.runs.listener import Advance, Listener
from topcoat.runs.showing import Opened, load_for, open_tokenizer, read_as

COUNTED = 20_000  # rows counted in tokens; the rest is scaled up
PIECE = SHOWN
"""Rows rendered at once: what is wrong with more of them would not all be said."""
BEFORE_TRAINING = Most(rows=100_000, text_bytes=2**26)
"""What a run looks at by itself before it starts, of the training rows and of the validation rows. The checks hold some
7 bytes for each byte of text (measured on 40 MB of short rows), so both together stay below 1 GB."""


def recipe_setting(recipe: Recipe, rows: int, tell: Tell) -> Setting:
    """What the recipe's model and adapter say about its training file of `rows` rows.

    Raises:
        TopcoatError: the model is not there or brings no tokenizer.
    """
    opened = open_tokenizer(recipe)
    renderer, held_out = Renderer(opened.tokenizer, allow=recipe.data.allow), recipe.data.validation
    lengths = _lengths(recipe, renderer, [file for file, _ in recipe.data.train_files], rows, tell)
    held = Lengths([], [], [])
    if isinstance(held_out, str):
        held = _lengths(recipe, renderer, [held_out], COUNTED, silent)
    longest = max([*lengths.tokens, *held.tokens], default=0)
    window = WINDOW if recipe.train.objective == "completion" else None
    max_length = choose_max_length(recipe.data.max_length, longest, opened.context_length, window)
    known = lengths.refused or held.refused or (recipe.data.overlong == "error" and longest > max_length)
    return Setting(
        lengths=lengths,
        max_length=max_length,
        context_length=opened.context_length,
        fill=_fill(recipe, lengths.tokens, max_length),
        overlong=recipe.data.overlong,
        packing=recipe.data.packing,
        target_tokens=round(sum(lengths.targets) * rows / max(1, len(lengths.rows))),
        adapter_parameters=adapter_parameters(recipe),
        adapter_rank=_rank(recipe),
        held_out=held_out if isinstance(held_out, float) else None,
        validation_tokens=held.tokens,
        validation_refused=held.refused,
        problems=[] if known else _problems(recipe, opened, tell),  # else it would say the same again
    )


def _problems(recipe: Recipe, opened: Opened, tell: Tell) -> list[Problem]:
    """What a run says of the data as a whole and ends for: its rows are loaded as the run loads them.

    Raises:
        DiskFull: the cache cannot be written, which says nothing of the data.
    """

    @contextmanager
    def bar(label: str, total: int) -> Iterator[Advance]:
        yield lambda done, figures: tell(label, done, total)

    try:
        load_for(recipe, opened, bar)
    except DiskFull:
        raise
    except TopcoatError as error:
        return list(error.problems)
    return []


def _lengths(recipe: Recipe, renderer: Renderer, files: Sequence[str], rows: int, tell: Tell) -> Lengths:
    """Tokens and target tokens of the rows of the files, which are `rows` in all, or of as even a sample of them as
    COUNTED allows, and what is wrong with those that a run refuses."""
    settings, objective = recipe.data, recipe.train.objective
    named, loss_on = read_as(recipe)
    step = -(-rows // COUNTED)
    found = Lengths([], [], [])
    piece: list[tuple[int, Row]] = []
    form: str = named
    columns = columns_of(settings)

    def take() -> None:
        nonlocal form
        form, conversations = to_conversations([row for _, row in piece], form, {})
        at = {row.line: number for number, row in piece}
        encoded = renderer.encode_many(conversations, [row for _, row in piece], loss_on)
        for example in encoded.examples:
            found.rows.append(at[example.row.line])
            found.tokens.append(len(example.input_ids))
            found.targets.append(example.n_target_tokens if objective not in LABELLED else 1)
        found.refused.update(_refused(encoded.bad, piece))
        tell("counting tokens", found.counted, -(-rows // step))
        piece.clear()

    number = 0
    for file in files:
        form = named
        for row in iter_rows(file):
            if number % step == 0:
                piece.append((number, Row(columns.apply(row.values), row.file, row.line)))
            number += 1
            if len(piece) == PIECE:
                take()
        if piece:
            take()
    return found


def _refused(bad: BadRows, piece: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, tuple[str, str]]]:
    """(number of the row, (what is wrong with it, what would help)) of the rows of a piece that are in `bad`."""
    for problem in bad.problems:
        for number, row in piece:
            if problem.what.startswith(f"{row.place}: "):
                yield number, (problem.what.removeprefix(f"{row.place}: "), problem.fix)


def _fill(recipe: Recipe, tokens: list[int], max_length: int) -> float | None:
    """Tokens / positions of one epoch, batched as the run batches examples of these sizes; None without any."""
    manner = manner_of(recipe.data.overlong, recipe.train.objective)
    sizes = pieces_of(np.array(tokens, np.int32), max_length, manner)[2].tolist()
    if not sizes:
        return None
    budget = micro_batch_tokens(recipe.train.micro_batch_tokens, max_length)
    plan = StepPlan(sizes, seed=recipe.seed, batch_size=recipe.train.batch_size, batch_tokens=recipe.train.batch_tokens)
    positions = 0
    for step in range(plan.steps_in(0)):
        lengths = plan.lengths[plan.step_examples(step)].tolist()
        if recipe.data.packing:
            rows = (sum(lengths[at] for at in row) for row in best_fit(lengths, budget))
            positions += sum(-(-row // ROUND) * ROUND for row in rows)
        else:
            positions += sum(len(group) * max(lengths[at] for at in group) for group in group_similar(lengths, budget))
    return sum(sizes) / positions


def _rank(recipe: Recipe) -> int | None:
    return recipe.adapter.r if isinstance(recipe.adapter, LoraConfig) else None


def adapter_parameters(recipe: Recipe) -> int | None:
    """Parameters that a recipe's adapter trains on the linears it names, from the shapes alone; None for full tuning
    and for methods that name no linears."""
    if not isinstance(recipe.adapter, TargetedConfig):
        return None
    linears = adaptable_linears(build_skeleton(open_source(recipe.model).config, DTYPES["bf16"], "eager"))
    shapes = {path: next(linear.parameters()).shape for path, linear in linears.items()}  # (O, I)
    return sum(sum(trained_sizes(recipe.adapter, path, *shapes[path])) for path in chosen(list(shapes), recipe.adapter))


def checked_as(recipe: Recipe) -> DataSettings:
    """The data with the checks that mean something for what the recipe learns.

    A file of plain text may be one document of a million tokens: its rows are few and long, its windows are neither.
    """
    if recipe.train.objective != "completion":
        return recipe.data
    senseless = {"too_few_rows": "off"} | ({"overlong": "off"} if recipe.data.overlong == "split" else {})
    return recipe.data.model_copy(update={"checks": recipe.data.checks.model_copy(update=senseless)})


def check_before_training(recipe: Recipe, data: Dataset, adapters: Adapters, listener: Listener) -> None:
    """The checks that cost little, over the first rows (BEFORE_TRAINING); what is found is said, and what was not seen.

    A validation file whose every prompt is trained on is a memory test on purpose: said, and not stopped, unless the
    recipe itself says what is to be done.

    Raises:
        Refused: a check has found something, and its policy is stop.
    """
    sizes = Setting(
        target_tokens=data.report.target_tokens,
        adapter_parameters=None if isinstance(recipe.adapter, FullConfig) else adapters.count(),
        adapter_rank=_rank(recipe),
    )
    setting = without_silenced(recipe, sizes)
    with late_bar(listener.progress, "checking the data") as advance:

        def tell(what: str, done: int, total: int) -> None:
            if what.startswith("check"):
                advance(done, total)

        verdict = check_files(
            checked_as(recipe),
            objective=recipe.train.objective,
            setting=lambda rows: setting,
            most=BEFORE_TRAINING,
            cheap_only=True,
            tell=tell,
        )
    for line in _not_seen(verdict, data.report.rows):
        listener.say(line)
    for line in summary(verdict):
        listener.say(f"warning: {line}")
    stops = verdict.stops
    # of a test of memory the scores are of that, and the warning says so
    if recipe.data.checks.validation_leaks == "auto" and is_memory_test(verdict.corpus):
        stops = [one for one in stops if one.check != "validation_leaks"]
    if stops:
        raise Refused.gather([_problem(verdict, one) for one in stops])


def _not_seen(verdict: Verdict, rows: int) -> list[str]:
    """One line on what the checks looked at, if that is not all of the `rows` training rows and the validation rows."""
    corpus, held = verdict.corpus, verdict.corpus.against
    seen = [f"the first {len(corpus):,} of {rows:,} training rows"] if corpus.is_cut else []
    seen += [f"the first {len(held):,} validation rows"] if held is not None and held.is_cut else []
    said = f"the checks of the data looked at {' and '.join(seen)}; `topcoat data check` looks at all of them"
    return [said] if seen else []


def _problem(verdict: Verdict, one: Found) -> Problem:
    where = verdict.corpus.place(one.rows[0]) if one.rows else verdict.corpus.file
    file = verdict.corpus.file_of(one.rows[0]) if one.rows else verdict.corpus.file
    typed = f"topcoat data check {file} --fix CLEANED, or set data.checks.{one.check}: warn"
    return Problem(f"{one.check}: {one.finding.what}: {one.finding.why}", where, f"{one.finding.fix}; {typed}")
