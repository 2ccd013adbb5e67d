"""The objectives of whole documents: one label (classification) or some numbers (regression) for each.

    s = W h, with h (D,) the hidden state behind the final norm at the document's last real token, W (K, D), in float32
    classification: sum over documents of w_y * cross-entropy(s, y)      regression: sum of mean_k (s_k - y_k)²

This is transformers' `ForSequenceClassification` head. Its documents share rows here all the same: the last token is
looked for in each document, not in each row, and a document of filling has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.data.batches import Batch
from topcoat.model.families import family_of
from topcoat.model.fuse import FusedModel
from topcoat.training.objectives.hidden import hidden_at, last_tokens
from topcoat.training.objectives.options import PLAIN, LossOptions


def label_logits(model: PreTrainedModel, batch: Batch, fused: FusedModel | None = None) -> Tensor:
    """The head's outputs (N, K) for the N documents of `batch`, float32 whatever the model computes in."""
    decoder = model.get_submodule(family_of(model).decoder)
    hidden = hidden_at(model, decoder, batch, last_tokens(batch), fused)  # (N, D)
    with torch.autocast(model.device.type, enabled=False):  # full fine-tuning computes under autocast
        scores: Tensor = model.get_submodule("score")(hidden.float())
    return scores


def classification(
    model: PreTrainedModel, batch: Batch, fused: FusedModel | None = None, options: LossOptions = PLAIN
) -> Tensor:
    """The summed cross-entropy of the documents' labels, a float32 scalar; `n_target_tokens` counts documents."""
    logits = label_logits(model, batch, fused)
    weights = None if options.class_weights is None else options.class_weights.to(logits.device)
    targets = wanted(batch).to(logits.device, torch.int64)[:, 0]
    return F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=options.label_smoothing)


def regression(
    model: PreTrainedModel, batch: Batch, fused: FusedModel | None = None, options: LossOptions = PLAIN
) -> Tensor:
    """The summed squared error of the documents, each the mean over its numbers; a float32 scalar."""
    found = label_logits(model, batch, fused)
    return (found - wanted(batch).to(found.device, torch.float32)).square().mean(-1).sum()


def balanced(counts: Sequence[int]) -> Tensor:
    """Weights (K,) of labels with `counts` (K,) training rows: rows / (K * count), whose mean over the rows is 1.

    A label without a row has weight 0: nothing is said of it.
    """
    found = torch.tensor(counts, dtype=torch.float32)
    return torch.where(found > 0, found.sum() / ((found > 0).sum() * found.clamp(min=1)), 0.0)


def wanted(batch: Batch) -> Tensor:
    """What the documents of `batch` are labelled with (N, K): a label's number in the only column, or numbers."""
    if batch.answers is None:
        raise ValueError("the batch was made of examples without labels")
    return batch.answers
