"""Heads and embeddings in a number format: only by name, computing and training exactly as dense copies of them."""

import pytest
import torch

from topcoat.data.batches import Batches
from topcoat.data.render import NOWHERE, Example
from topcoat.errors import TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import read_config
from topcoat.training.objectives.sft import sft

FORMATS = [
    "nf4",
    "int8",
    "bf16",
    {"format": "int3", "group_size": 16},
    {"format": "gptq", "bits": 8, "group_size": 32},
    {"format": "nf4-icq", "search_points": 2},
    {"format": "gguf", "type": "Q8_0"},
]


def load(path, quantization, **more):
    return load_model(
        ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu", **more)
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


def loss_of(model):
    rows = [list(range(3, 40)), [7, 7, 200, 4]]
    examples = [Example(ids, ids, NOWHERE) for ids in rows]
    return sum(sft(model, batch) for batch in Batches(examples, 2, budget_tokens=64, packing=True))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_head_and_embedding_compute_what_dense_copies_of_them_do(llama, format):
    base = load(llama, read_config({"format": "fp32", "overrides": {"lm_head": format, "embed_tokens": format}}))
    plain = load(llama, None)
    head, embedding = base.model.lm_head, base.model.model.embed_tokens
    assert isinstance(head, FrozenLinear)
    assert isinstance(embedding, FrozenEmbedding)
    assert base.vocab_rows == plain.vocab_rows == 512
    with torch.no_grad():
        plain.model.lm_head.weight.copy_(head.dense_weight(torch.float32))
        plain.model.model.embed_tokens.weight.copy_(embedding.dense_weight(torch.float32))
        ids = torch.randint(3, 500, (2, 17))
        assert torch.equal(base.model(ids).logits, plain.model(ids).logits)
    ours, theirs = loss_of(base.model), loss_of(plain.model)  # the loss without logits
    assert torch.equal(ours, theirs)


def test_gradients_below_a_quantized_head_are_those_of_a_dense_one(llama):
    base = load(llama, read_config({"format": "fp32", "overrides": {"lm_head": "nf4"}}))
    plain = load(llama, None)
    with torch.no_grad():
        plain.model.lm_head.weight.copy_(base.model.lm_head.dense_weight(torch.float32))
    norms = []
    for model in (base.model, plain.model):
        norm = model.model.norm.weight.requires_grad_(True)
        loss_of(model).backward()
        norms.append(norm.grad)
    assert torch.equal(*norms)


def test_they_are_left_alone_unless_named(llama):
    model = load(llama, read_config({"format": "fp32", "overrides": {"*": "int8"}})).model
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.model.embed_tokens) is torch.nn.Embedding
    assert model.model.layers[0].mlp.up_proj.weight_state.format == "int8"


def test_a_wildcard_before_the_name_does_not_take_the_head(llama):
    model = load(llama, read_config({"format": "fp32", "overrides": {"*": "int8", "lm_head": "nf4"}})).model
    assert model.lm_head.weight_state.format == "nf4"


def test_tied_ones_share_one_weight(tied):
    model = load(tied, read_config({"format": "nf4", "overrides": {"lm_head": "int8", "embed_tokens": "int8"}})).model
    head, embedding = model.lm_head.weight_state, model.model.embed_tokens.weight_state
    assert head.tensors["codes"].data_ptr() == embedding.tensors["codes"].data_ptr()
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize("overrides", [{"lm_head": "int8"}, {"lm_head": "int8", "embed_tokens": "nf4"}], ids=str)
def test_tied_ones_stored_in_two_ways_are_refused(tied, overrides):
    with pytest.raises(TopcoatError, match="are one weight in this model") as caught:
        load(tied, read_config({"format": "nf4", "overrides": overrides}))
    assert "name both with one format, or neither" in caught.value.problems[0].fix


def test_an_embedding_that_does_more_than_look_up_is_refused(tmp_path):
    path = save_tiny(tmp_path / "gemma", "gemma3_text", tie_word_embeddings=False)
    with pytest.raises(TopcoatError, match="Gemma3TextScaledWordEmbedding, which does more"):
        load(path, read_config({"format": "nf4", "overrides": {"embed_tokens": "int8"}}))
