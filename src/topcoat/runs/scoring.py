"""Scores of a model on the validation rows: perplexity over all of them, exact match over the first `rows`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from topcoat.adapters.attach import Adapters
from topcoat.data.batches import Batch, Batches
from topcoat.data.load import Dataset
from topcoat.data.render import Example
from topcoat.errors import Refused
from topcoat.evaluation.answers import Question, answer, exact_match
from topcoat.evaluation.loss import mean_loss, perplexity
from topcoat.evaluation.settings import AT_ONCE, EvaluateSettings
from topcoat.model.fuse import FusedModel
from topcoat.model.load import Base
from topcoat.runs.compute import make_loss, precision
from topcoat.runs.listener import Listener
from topcoat.training.halving import first_line, is_out_of_memory
from topcoat.training.memory import free_leftovers
from topcoat.training.settings import TrainSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """What was measured, with the answers that were given."""

    perplexity: float | None
    exact_match: float | None
    answers: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What is measured of labels or numbers, in place of the two above."""

    def as_json(self) -> dict[str, Any]:
        """The figures alone."""
        return dict(self.figures) or {"perplexity": self.perplexity, "exact_match": self.exact_match}

    def value(self, name: str) -> float | None:
        """One figure by its name, such as "perplexity" or "accuracy"."""
        known: float | None = {"perplexity": self.perplexity, "exact_match": self.exact_match, **self.figures}.get(name)
        return known

    @classmethod
    def read(cls, figures: Mapping[str, Any], answers: tuple[str, ...]) -> Scores:
        """Those that `as_json` wrote, and the answers beside them."""
        if "exact_match" in figures:
            return cls(figures["perplexity"], figures["exact_match"], answers)
        return cls(None, None, answers, figures)


class Scorer:
    """Asks one base model, adapter on or off, the same questions again and again."""

    def __init__(
        self,
        base: Base,
        adapters: Adapters,
        data: Dataset,
        settings: EvaluateSettings,
        train: TrainSettings,
        *,
        budget_tokens: int,
        packing: bool,
        check: Callable[[], None],
        fused: FusedModel | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`check` is called often and may raise to leave; `fused` is the fast path, where there is one."""
        self.base, self.settings, self.check, self.say = base, settings, check, say
        self.loss_of, self.precision = make_loss(base, adapters, fused, train), precision(base, adapters)
        self.data, self.fused = data, fused
        self.packing, self.added, self.at_once = packing, adapters.config.virtual_tokens, AT_ONCE
        self.halvings = 0
        """Times that memory ran out; a checkpoint keeps them, since a loss is summed batch by batch."""
        self._split(budget_tokens)
        self.stop_ids = data.renderer.stop_ids
        self.questions = self._questions()

    def _split(self, budget_tokens: int) -> None:
        """The validation rows in batches of at most so many positions."""
        rows, self.budget_tokens = self.data.validation, budget_tokens
        self.batches, self.some = (
            Batches(rows, n, budget_tokens=budget_tokens, packing=self.packing, virtual_tokens=self.added)
            for n in (len(rows), min(len(rows), self.settings.rows))
        )

    def halve(self, times: int = 1) -> None:
        """Half as many rows at once, and batches of half the positions, so many times."""
        self.halvings += times
        self.at_once = max(1, self.at_once >> times)
        self._split(self.budget_tokens >> times)

    def within_memory(self, compute: Callable[[], T]) -> T:
        """`compute()`, and while memory runs out again with half as many rows at once.

        Raises Refused where one row at a time does not fit.
        """
        while True:
            try:
                return compute()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.at_once == 1 and len(self.batches) == len(self.data.validation):
                    raise Refused(
                        f"evaluating one row at a time does not fit into memory: {first_line(error)}",
                        where="evaluate",
                        fix="lower evaluate.max_new_tokens or data.max_length, or write data.validation: null",
                    ) from error
            free_leftovers()
            self.halve()
            self.say(
                f"memory ran out while evaluating: {self.at_once} rows are answered at once from here on, and batches "
                f"hold at most {self.budget_tokens:,} tokens"
            )

    def _questions(self) -> list[Question]:
        """What is asked at the end, the first of them at each evaluation."""
        data, settings, base = self.data, self.settings, self.base
        asked = (question(e, base) for e in data.validation if e.answer_start is not None)
        wanted = settings.rows if "exact_match" in settings.metrics else settings.samples
        return list(islice(asked, wanted))

    def loss(self) -> float | None:
        """Mean validation loss over the first rows, as used during the run; None without validation rows."""
        return self.within_memory(lambda: self._loss(self.some))

    def scores(self, listener: Listener, label: str) -> Scores:
        """Everything the settings ask for."""
        wants_loss = "perplexity" in self.settings.metrics
        mean = self.within_memory(lambda: self._loss(self.batches)) if wants_loss else None
        wants = "exact_match" in self.settings.metrics and bool(self.questions)
        answers = self.ask(self.questions, listener, label)
        return Scores(
            perplexity=None if mean is None else perplexity(mean),
            exact_match=exact_match(answers, self.questions) if wants else None,
            answers=tuple(answers),
        )

    def base_scores(self, listener: Listener) -> Scores:
        """Those of the model before anything is trained; adapters are off while it is asked."""
        return self.scores(listener, "asking the base")

    def ask(self, questions: Sequence[Question], listener: Listener, label: str) -> list[str]:
        """Greedy answers."""
        if not questions:
            return []
        with listener.progress(label, len(questions)) as advance, Evaluating(self.base.model), self.precision():
            return self.within_memory(
                lambda: answer(
                    self.base.model,
                    self.base.tokenizer,
                    questions,
                    self.stop_ids,
                    self.settings.max_new_tokens,
                    on_answer=lambda done: advance(done, {}),
                    check=self.check,
                    batch_size=self.at_once,
                )
            )

    def _loss(self, batches: Sequence[Batch]) -> float | None:
        if not batches:
            return None
        with Evaluating(self.base.model):
            return mean_loss(self.loss_of, batches, self.check)


class Evaluating:
    """Inside, the model is in eval mode (no dropout, no recomputing); afterwards as it was."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.before = self.model.training
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.before)


def question(example: Example, base: Base) -> Question:
    """The last answer of `example` as a question: its prompt in tokens and in text, and the reference."""
    assert example.answer_start is not None
    assert example.reference is not None
    ids = example.input_ids[: example.answer_start]
    turns = [m["content"] for m in example.prompt_messages or [] if m["role"] == "user"]
    text = turns[-1] if turns else base.tokenizer.decode(ids)
    return Question(ids, str(text), example.reference)
