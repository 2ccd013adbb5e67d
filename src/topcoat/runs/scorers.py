"""The table SCORERS: how a run is measured, by its objective. Tokens by perplexity and answers, labels and numbers by
what the head says of each validation row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from topcoat.data.batches import Batch
from topcoat.evaluation.answers import Question
from topcoat.evaluation.classes import class_figures
from topcoat.evaluation.numbers import number_figures
from topcoat.runs.listener import Listener
from topcoat.runs.scoring import Evaluating, Scorer, Scores
from topcoat.training.objectives.labels import label_logits


class LabelScorer(Scorer):
    """Compares what the head says of the validation rows with their labels, or with their numbers.

    A base without a head says nothing, so what stands in its place is the best that can be said without looking: always
    the most frequent label of the training rows, or always the mean of their numbers.
    """

    def _questions(self) -> list[Question]:
        rows = self.data.validation[: self.settings.rows]
        expected = self._expected(len(rows))
        decode = self.base.tokenizer.decode
        return [
            Question(row.input_ids, str(decode(row.input_ids, skip_special_tokens=True)), said)
            for row, said in zip(rows, self._said(expected), strict=True)
        ]

    def base_scores(self, listener: Listener) -> Scores:
        """Those of the constant answer."""
        n, train = len(self.data.validation), self.data.train
        learned = train.answers(np.arange(len(train)))  # (rows, K)
        assert self.data.labels is not None
        if self.data.labels.objective == "regression":
            constant = np.repeat(learned.mean(0)[None], n, 0)
        else:
            constant = np.full((n, 1), float(np.argmax(self.data.label_counts())))
        return self._scored(constant, None)

    def scores(self, listener: Listener, label: str) -> Scores:
        """What the head says of all validation rows."""
        return self._scored(*self.within_memory(lambda: self._head(self.batches, len(self.data.validation))))

    def ask(self, questions: Sequence[Question], listener: Listener, label: str) -> list[str]:
        """What the head says of the first rows, as words."""
        n = len(questions)
        if not n:
            return []

        def first() -> NDArray[np.float64]:
            batches = [batch for batch in self.batches if min(batch.rows) < n]
            return self._head(batches, len(self.data.validation))[0]

        return self._said(self.within_memory(first)[:n])

    @torch.no_grad()
    def _head(self, batches: Sequence[Batch], rows: int) -> tuple[NDArray[np.float64], float | None]:
        """What the head says of each row (rows, 1), or (rows, K) numbers, and the mean cross-entropy of labels."""
        labels = self.data.labels
        assert labels is not None
        is_class = labels.objective == "classification"
        found = np.zeros((rows, 1 if is_class else labels.outputs))
        loss, count = 0.0, 0
        with Evaluating(self.base.model), self.precision():
            for batch in batches:
                self.check()
                logits = label_logits(self.base.model, batch, self.fused).cpu()  # (N, K)
                found[batch.rows] = logits.argmax(-1, keepdim=True).numpy() if is_class else logits.numpy()
                if is_class and batch.answers is not None:
                    loss += float(F.cross_entropy(logits, batch.answers[:, 0].long(), reduction="sum"))
                count += len(logits)
        return found, loss / count if count and is_class else None

    def _expected(self, rows: int) -> NDArray[np.float64]:
        return self.data.validation.answers(np.arange(rows))

    def _scored(self, found: NDArray[np.float64], loss: float | None) -> Scores:
        labels, expected = self.data.labels, self._expected(len(found))
        assert labels is not None
        if not len(expected):
            return Scores(None, None)
        if labels.objective == "regression":
            figures = number_figures(expected, found, labels.names)
        else:
            figures = class_figures(expected[:, 0].astype(np.int64), found[:, 0].astype(np.int64), labels.names)
            figures |= {} if loss is None else {"loss": loss}
        return Scores(None, None, tuple(self._said(found[: len(self.questions)])), figures)

    def _said(self, values: NDArray[np.float64]) -> list[str]:
        """Labels by their names; numbers with four digits."""
        labels = self.data.labels
        assert labels is not None
        if labels.objective == "regression":
            return [", ".join(f"{value:.4g}" for value in row) for row in values]
        return [labels.names[int(row[0])] for row in values]


SCORERS: dict[str, type[Scorer]] = {
    "sft": Scorer,
    "completion": Scorer,
    "classification": LabelScorer,
    "regression": LabelScorer,
}
