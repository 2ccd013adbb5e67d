"""What a process takes beside its tensors, and the groups of the stacked picture."""

from __future__ import annotations

import pytest

from topcoat.planning.architecture import architecture_of
from topcoat.planning.bill import GROUPS, group_bytes
from topcoat.planning.process import (
    LIBRARY_BYTES,
    PRODUCT_BYTES,
    library_bytes,
    product_bytes,
    temporary_bytes,
)
from topcoat.planning.shapes import find_shape

SIZE = architecture_of(find_shape("smollm2-135m").facts(), "x").block_sizes


def test_a_larger_vocabulary_has_larger_tables():
    assert library_bytes(0) == LIBRARY_BYTES
    assert library_bytes(151_936) - library_bytes(49_152) == 1000 * (151_936 - 49_152)


def test_temporaries_are_those_of_attention_and_in_float32_what_torch_gathers():
    assert temporary_bytes(SIZE, 1024, 2) == 1024 * (2 * 14 * 64 + 8 * 192)
    assert temporary_bytes(SIZE, 1024, 4) == 1024 * 4 * (5 * 576 + 4 * 192)


def products(tokens=2048, longest=512.0, mean=60.0, dtype="bf16", *, ours=False, batches=None, packing=True):
    return product_bytes(tokens, longest, mean, dtype, ours=ours, batches=batches, packing=packing)


def test_products_that_are_built_grow_with_the_numbers_of_rows_that_come_up():
    one = products(mean=512.0)
    assert one == 42 * PRODUCT_BYTES
    found = [products(batches=n) for n in (1, 10, 100, 10_000, None)]
    assert found == sorted(found)
    assert one < found[0] < 0.3 * found[-1]
    assert found[-2] == found[-1]
    assert products(1024) == pytest.approx(0.5 * products(2048), rel=1e-6)
    assert products(8192) == 1024 * PRODUCT_BYTES  # oneDNN keeps no more
    assert products(64) == one


def test_padded_batches_have_a_number_of_rows_each():
    assert products(batches=16, packing=False) > products(batches=16)
    assert products(batches=10_000, packing=False) == 1024 * PRODUCT_BYTES


def test_what_seventy_steps_of_chat_rows_built_is_planned():
    """SmolLM2-135M, alpaca, 78 micro batches of up to 2,048 tokens and 11 of validation: 463 MB above other lines."""
    assert products(batches=78 + 11) == pytest.approx(463e6, rel=0.2)


def test_nothing_is_built_in_float32_nor_where_tiles_multiply_bf16():
    assert products(dtype="fp32") == products(ours=True) == 0
    assert products(dtype="fp16", ours=True) > 0


def test_every_line_of_a_bill_is_in_one_part_of_the_picture():
    assert len({name for names in GROUPS.values() for name in names}) == sum(map(len, GROUPS.values()))
    sums = group_bytes({"frozen weights": 5, "embeddings and head": 2, "loss": 3})
    assert sums == {"frozen weights": 7, "what trains": 0, "activations": 3, "process": 0}
    assert group_bytes({"loss": 3, "something new": 4})["others"] == 4
