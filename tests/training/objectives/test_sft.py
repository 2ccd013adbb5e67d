"""The supervised loss: packed = padded = one by one through transformers' own eager model, for every family."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.data.batches import Batch, micro_batches, packed, padded
from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.render import Example
from topcoat.model.families import FAMILIES
from topcoat.model.tiny import TINY_TYPES
from topcoat.training.objectives.hidden import spans
from topcoat.training.objectives.sft import sft, target_positions

LENGTHS = [37, 5, 18, 1, 40, 2, 17]  # longer than the tiny sliding windows of 32, and one with nothing to predict


def by_transformers(model: nn.Module, rows: list[Example]) -> Tensor:
    """Each example alone through transformers' eager attention; logits, then torch's cross-entropy in float32."""
    model.set_attn_implementation("eager")
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        labels = torch.tensor(row.labels)
        total = total + F.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=IGNORE_INDEX, reduction="sum")
    return total


def graded(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The loss and all gradients, by name."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    grads = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}
    return {"loss": loss.detach()} | grads


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Loss and every gradient equal, relative to the norm of each; one that is zero (a query that sees one key) is."""
    for name, value in truth.items():
        off = float((found[name] - value).norm() / (value.norm() if value.any() else 1))
        assert off < tolerance, f"{name}: {off}"


def total(model: nn.Module, batches: list[Batch]) -> Tensor:
    return torch.stack([sft(model, batch) for batch in batches]).sum()


def implementations(model_type: str) -> list[str]:
    """Those that compute this family: sdpa has no soft cap, and topcoat is for the families it is proved on."""
    return ["eager"] + ["sdpa"] * (model_type != "gemma2") + ["topcoat"] * (model_type in FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "attention"), [(kind, name) for kind in TINY_TYPES for name in implementations(kind)]
)
def test_packed_is_padded_is_one_by_one(ready, examples, model_type, attention):
    rows = examples(LENGTHS)
    model, adapters = ready(model_type, attention=attention)
    parameters = adapters.parameters()
    everything = range(len(rows))
    in_one_row = graded(sft(model, packed(rows, everything)), parameters)
    side_by_side = graded(sft(model, padded(rows, everything)), parameters)
    alone = graded(total(model, [packed(rows, [i]) for i in everything]), parameters)
    truth = graded(by_transformers(model, rows), parameters)
    assert_same(in_one_row, truth)
    assert_same(side_by_side, truth)
    assert_same(alone, truth)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "gpt_neox", "olmo2"])
def test_every_weight_of_a_full_fine_tune_gets_the_gradient_of_transformers(ready, examples, model_type):
    rows = examples(LENGTHS)
    attention = "topcoat" if model_type in FAMILIES else "sdpa"
    model, adapters = ready(model_type, FullConfig(), attention)
    found = graded(sft(model, packed(rows, range(len(rows)))), adapters.parameters())
    assert_same(found, graded(by_transformers(model, rows), adapters.parameters()), 2e-5)


def test_a_head_trained_beside_the_adapter_gets_its_gradient(ready, examples):
    rows = examples(LENGTHS)
    model, adapters = ready("llama", LoraConfig(r=2, modules_to_save=["lm_head"]))
    found = graded(sft(model, packed(rows, range(len(rows)))), adapters.parameters())
    assert bool(found["lm_head.weight"].any())
    assert_same(found, graded(by_transformers(model, rows), adapters.parameters()))


RAGGED = st.lists(st.integers(1, 30), min_size=2, max_size=8).filter(lambda lengths: max(lengths) > 1)
SPLITS = st.lists(st.tuples(st.integers(8, 60), st.booleans()), min_size=1, max_size=2)


def assert_splitting_changes_nothing(ready, examples, lengths, splits, seed) -> None:
    rows = examples(lengths, seed)
    model, adapters = ready(layers=1, hidden_size=32, intermediate_size=32)
    parameters = adapters.parameters()
    targets = sum(row.n_target_tokens for row in rows)
    whole = graded(sft(model, packed(rows, range(len(rows)))) / targets, parameters)
    for budget, packing in splits:
        batches = micro_batches(rows, range(len(rows)), budget_tokens=budget, packing=packing)
        assert sum(batch.n_target_tokens for batch in batches) == targets
        assert_same(graded(total(model, batches) / targets, parameters), whole)


@settings(max_examples=40, deadline=None)
@given(RAGGED, SPLITS, st.integers(0, 5))
def test_however_a_step_is_split_its_gradient_is_the_same(ready, examples, lengths, splits, seed):
    assert_splitting_changes_nothing(ready, examples, lengths, splits, seed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(RAGGED, SPLITS, st.integers(0, 999))
def test_however_a_step_is_split_its_gradient_is_the_same_over_many_draws(ready, examples, lengths, splits, seed):
    assert_splitting_changes_nothing(ready, examples, lengths, splits, seed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.booleans(), st.integers(0, 5))
def test_targets_are_the_labelled_tokens_after_the_first_of_each_example(examples, lengths, packing, seed):
    rows = examples(lengths, seed)
    batch = (packed if packing else padded)(rows, range(len(rows)))
    positions, targets = target_positions(batch)
    flat = batch.input_ids.flatten()
    expected = []
    for (start, n), row in zip(spans(batch), rows, strict=False):  # a packed row may end in a document of padding
        assert flat[start : start + n].tolist() == row.input_ids
        expected += [(start + i - 1, row.labels[i]) for i in range(1, n) if row.labels[i] != IGNORE_INDEX]
    assert list(zip(positions.tolist(), targets.tolist(), strict=True)) == expected
    assert len(targets) == batch.n_target_tokens


def test_the_first_token_of_a_document_is_never_a_target_even_if_it_is_labelled(examples):
    batch = packed(examples([6, 4, 5]), range(3))
    expected = [part.tolist() for part in target_positions(batch)]
    starts = [start for start, _ in spans(batch)]
    batch.labels[0, starts] = batch.input_ids[0, starts]
    assert [part.tolist() for part in target_positions(batch)] == expected


def test_a_batch_without_targets_is_a_loss_of_zero_with_gradients_of_zero(ready):
    model, adapters = ready()
    row = Example([5, 6, 7], [IGNORE_INDEX] * 3, None)
    found = graded(sft(model, packed([row], [0])), adapters.parameters())
    assert not any(bool(value.any()) for value in found.values())


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_other_documents_in_the_row_change_nothing_about_a_documents_loss(ready, examples, model_type):
    first, other = examples([20, 20], 1), examples([20, 20], 2)
    model, adapters = ready(model_type)
    rows = [first[0], Example(first[1].input_ids, [IGNORE_INDEX] * 20, None)]
    changed = [first[0], Example(other[1].input_ids, [IGNORE_INDEX] * 20, None)]
    one, two = (graded(sft(model, packed(some, [0, 1])), adapters.parameters()) for some in (rows, changed))
    assert float(one["loss"]) == float(two["loss"])
    assert_same(one, two, 1e-6)


def test_the_loss_is_float32_whatever_the_model_computes_in(ready, examples):
    model, _ = ready(dtype=torch.bfloat16)
    loss = sft(model, packed(examples([30, 9]), [0, 1]))
    assert loss.dtype == torch.float32
    assert_close(float(loss.detach()), float(by_transformers(model, examples([30, 9])).detach()), rtol=2e-2, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2"])
def test_gradient_checkpointing_changes_no_gradient(ready, examples, model_type):
    rows = examples(LENGTHS)
    model, adapters = ready(model_type, attention="topcoat" if model_type in FAMILIES else "sdpa")
    model.train()
    batch = packed(rows, range(len(rows)))
    plain = graded(sft(model, batch), adapters.parameters())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(graded(sft(model, batch), adapters.parameters()), plain, 1e-6)
