"""FrozenEmbedding: rows as the whole table has them, and bytes that no cast changes."""

import pytest
import torch
from torch import nn

from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.formats import make_format
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GptqConfig, Int8Config, Nf4Config

IDS = torch.tensor([[3, 0, 3], [19, 7, 1]])


def table_of(config, columns=64):
    format = make_format(config)
    return format.quantize(torch.randn(20, columns, generator=torch.Generator().manual_seed(1))), format


@pytest.mark.parametrize("config", [Int8Config(), Nf4Config(), GptqConfig(group_size=32)], ids=lambda c: c.format)
def test_a_row_looked_up_is_the_row_of_the_table(config):
    embedding = FrozenEmbedding(*table_of(config), torch.float32)
    assert torch.equal(embedding(IDS), embedding.dense_weight(torch.float32)[IDS])


def test_rows_whose_columns_are_listed_in_groups_are_looked_up_whole():
    state, format = table_of(GptqConfig(group_size=32))
    state.tensors["group"] = (torch.arange(64) % 2).int()
    embedding = FrozenEmbedding(state, format, torch.float32)
    assert torch.equal(embedding(IDS), embedding.dense_weight(torch.float32)[IDS])


@pytest.mark.parametrize("kind", [FrozenEmbedding, FrozenLinear])
def test_no_cast_changes_what_is_stored(kind):
    more = (torch.float32,) if kind is FrozenEmbedding else (torch.ones(20), torch.float32)
    module = kind(*table_of(Nf4Config()), *more)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for cast in (nn.Module.half, nn.Module.double, lambda m: m.to("cpu", torch.bfloat16)):
        cast(nn.Sequential(module))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in module.state_dict().items())
