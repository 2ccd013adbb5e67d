"""Heads of labels and numbers: transformers' own ForSequenceClassification decides, document by document."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from topcoat.data.batches import Batch, packed, padded
from topcoat.model.attention import NAME, register
from topcoat.model.families import FAMILIES
from topcoat.model.fuse import fuse
from topcoat.model.score import ScoreHead
from topcoat.model.tiny import tiny_model
from topcoat.training.objectives.hidden import last_tokens, spans
from topcoat.training.objectives.labels import balanced, classification, label_logits, regression
from topcoat.training.objectives.options import LossOptions
from topcoat.training.objectives.table import OBJECTIVES

LENGTHS = [37, 5, 18, 1, 40, 2]
LABELS = 5


def with_head(ready, model_type: str = "llama", **tiny) -> nn.Module:
    model, _ = ready(model_type, **tiny)
    model.add_module("score", ScoreHead(model.config.hidden_size, LABELS, torch.Generator().manual_seed(3)))
    return model


def labelled(batch: Batch, values: Tensor) -> Batch:
    """The batch with what its documents are labelled with (N, K), in the order of its rows."""
    batch.answers = values[batch.rows].double()
    batch.n_target_tokens = len(batch.rows)
    return batch


def drawn_labels(n: int) -> Tensor:
    return torch.randint(LABELS, (n, 1), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_document_gets_the_outputs_of_transformers_alone_padded_or_packed(examples, model_type):
    rows = examples(LENGTHS)
    register()
    model = tiny_model(model_type)
    model.set_attn_implementation(NAME)
    model.add_module("score", ScoreHead(model.config.hidden_size, LABELS, torch.Generator().manual_seed(3)))
    config = copy.deepcopy(model.config)
    config.num_labels = LABELS
    theirs = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()
    theirs.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith("lm_head")}
    )
    with torch.no_grad():
        truth = torch.cat([theirs(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits for row in rows])
        for collate in (packed, padded):
            assert_close(label_logits(model, collate(rows, range(len(rows)))), truth, rtol=1e-4, atol=1e-5)


def test_the_hand_written_blocks_give_the_same_outputs_and_gradients(ready, examples):
    rows = examples(LENGTHS)
    model, adapters = ready("llama")
    model.add_module("score", ScoreHead(64, LABELS, torch.Generator().manual_seed(3)))
    fused = fuse(model)
    assert not isinstance(fused, str)
    batch = labelled(packed(rows, range(len(rows))), drawn_labels(len(rows)))
    parameters = list(adapters.parameters().values())
    plain = torch.autograd.grad(classification(model, batch), parameters)
    quick = torch.autograd.grad(classification(model, batch, fused), parameters)
    for one, other in zip(plain, quick, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.booleans(), st.integers(0, 5))
def test_the_last_token_of_each_document_is_read_and_never_filling(examples, lengths, packing, seed):
    rows = examples(lengths, seed)
    batch = (packed if packing else padded)(rows, range(len(rows)))
    read = batch.input_ids.flatten()[last_tokens(batch)].tolist()
    assert read == [row.input_ids[-1] for row in rows]
    assert len(read) <= len(spans(batch))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 1.0, 0.0]])
def test_the_loss_of_labels_is_torchs(ready, examples, smoothing, weights):
    rows = examples(LENGTHS)
    model = with_head(ready)
    batch = labelled(packed(rows, range(len(rows))), drawn_labels(len(rows)))
    options = LossOptions(smoothing, None if weights is None else torch.tensor(weights))
    logits = label_logits(model, batch).double()
    expected = F.cross_entropy(
        logits,
        drawn_labels(len(rows))[:, 0],
        weight=None if weights is None else torch.tensor(weights).double(),
        label_smoothing=smoothing,
        reduction="sum",
    )
    found = classification(model, batch, None, options)
    assert found.dtype == torch.float32
    assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_loss_of_numbers_is_their_mean_squared_error_summed_over_documents(ready, examples):
    rows = examples(LENGTHS)
    model = with_head(ready)
    values = torch.randn(len(rows), LABELS, generator=torch.Generator().manual_seed(5))
    batch = labelled(padded(rows, range(len(rows))), values)
    found = regression(model, batch)
    expected = sum(
        float(((o - y) ** 2).mean()) for o, y in zip(label_logits(model, batch).detach(), values, strict=True)
    )
    assert_close(float(found.detach()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_however_documents_are_batched_the_loss_is_the_same(ready, examples, objective):
    rows = examples(LENGTHS)
    model = with_head(ready)
    values = drawn_labels(len(rows)) if objective == "classification" else torch.randn(len(rows), LABELS)
    loss = OBJECTIVES[objective].loss
    whole = loss(model, labelled(packed(rows, range(len(rows))), values), None, LossOptions())
    parts = [
        labelled(collate(rows, some), values)
        for collate, some in ((packed, [4, 0]), (padded, [1, 3]), (packed, [2, 5]))
    ]
    assert_close(sum(loss(model, part, None, LossOptions()) for part in parts), whole, rtol=1e-5, atol=1e-5)
    assert sum(part.n_target_tokens for part in parts) == len(rows)


def test_the_head_computes_in_float32_whatever_the_model_computes_in(ready, examples):
    model = with_head(ready, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert label_logits(model, packed(examples([9, 4]), [0, 1])).dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(lambda counts: sum(counts) > 0))
def test_balanced_weights_give_every_label_the_same_say_and_rows_a_mean_of_one(counts):
    weights = balanced(counts)
    said = [float(w) * n for w, n in zip(weights, counts, strict=True) if n]
    assert_close(said, [sum(counts) / len(said)] * len(said), rtol=1e-5, atol=1e-5)
    assert all(float(w) == 0 for w, n in zip(weights, counts, strict=True) if not n)


def test_examples_without_labels_are_no_batch_for_it(ready, examples):
    with pytest.raises(ValueError, match="without labels"):
        classification(with_head(ready), packed(examples([4]), [0]))
