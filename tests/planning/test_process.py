"""What a process takes beside its tensors, and the groups of the stacked picture."""

from __future__ import annotations

from topcoat.planning.architecture import architecture_of
from topcoat.planning.bill import GROUPS, group_bytes
from topcoat.planning.process import LIBRARY_BYTES, library_bytes, product_bytes, temporary_bytes
from topcoat.planning.shapes import find_shape

SIZE = architecture_of(find_shape("smollm2-135m").facts(), "x").block_sizes


def test_a_larger_vocabulary_has_larger_tables():
    assert library_bytes(0) == LIBRARY_BYTES
    assert library_bytes(151_936) - library_bytes(49_152) == 1000 * (151_936 - 49_152)


def test_temporaries_are_those_of_attention_and_in_float32_what_torch_gathers():
    assert temporary_bytes(SIZE, 1024, 2) == 1024 * (2 * 14 * 64 + 8 * 192)
    assert temporary_bytes(SIZE, 1024, 4) == 1024 * 4 * (5 * 576 + 4 * 192)


def test_products_that_are_built_grow_with_the_numbers_of_rows_there_can_be():
    one = product_bytes(2048, 512, 512, "bf16", ours=False)
    assert one > 10**7
    assert product_bytes(128, 128, 60, "bf16", ours=False) == 2 * one
    assert (
        product_bytes(512, 512, 60, "fp16", ours=False) == product_bytes(8192, 512, 60, "bf16", ours=False) == 8 * one
    )


def test_nothing_is_built_in_float32_nor_where_tiles_multiply_bf16():
    assert product_bytes(2048, 512, 60, "fp32", ours=False) == product_bytes(2048, 512, 60, "bf16", ours=True) == 0
    assert product_bytes(2048, 512, 60, "fp16", ours=True) > 0


def test_every_line_of_a_bill_is_in_one_part_of_the_picture():
    assert len({name for names in GROUPS.values() for name in names}) == sum(map(len, GROUPS.values()))
    sums = group_bytes({"frozen weights": 5, "embeddings and head": 2, "loss": 3})
    assert sums == {"frozen weights": 7, "what trains": 0, "activations": 3, "process": 0}
    assert group_bytes({"loss": 3, "something new": 4})["others"] == 4
