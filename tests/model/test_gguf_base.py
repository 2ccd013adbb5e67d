"""A GGUF as the frozen base: its blocks as they lie, in every family and block type."""

from __future__ import annotations

import statistics

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from llama_cpp import llama_cpp

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import TopcoatError
from topcoat.exporting.gguf_adapter import export_gguf_lora
from topcoat.kernels.gguf_dequant import BLOCK_TYPES
from topcoat.model.gguf_source import GgufSource
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny, tiny_model
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GgufConfig

IDS = torch.arange(3, 40)[None]
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2},
    "phi3": {},
    "smollm3": {"no_rope_layer_interval": 4, "layers": 4},
    "gpt_neox": {},
}


def load(path, quantization):
    settings = {"path": str(path), "compute_dtype": "fp32", "device": "cpu", "attention": "eager"}
    return load_model(ModelSettings(**settings, quantization=quantization))


def logits(base):
    with torch.no_grad():
        return base.model(IDS).logits


def linears(base):
    return {path: m for path, m in base.model.named_modules() if isinstance(m, FrozenLinear)}


def last_logprobs(base, prompts):
    """(V,) behind each prompt."""
    with torch.no_grad():
        return [base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1) for ids in prompts]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_training_on_the_blocks_is_training_on_the_values_of_the_file(write_gguf, model_type):
    path = write_gguf(tiny_model(model_type, **FAMILIES[model_type]), Kind.Q4_1)
    blocks, dense = load(path, {"format": "gguf"}), load(path, None)
    assert torch.equal(logits(blocks), logits(dense))
    assert blocks.identity.base == dense.identity.base
    for path, linear in linears(blocks).items():
        assert linear.weight_state.nbytes == 20 * linear.in_features * linear.out_features // 32, path


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q5_1])
def test_every_type_is_kept(write_gguf, kind):
    path = write_gguf(tiny_model("qwen2"), kind)
    blocks, dense = load(path, {"format": "gguf"}), load(path, None)
    assert torch.equal(logits(blocks), logits(dense))
    stored = sum(t.n_bytes for t in GgufSource(path).tensors() if "_proj.weight" in t.name)
    assert sum(linear.weight_state.nbytes for linear in linears(blocks).values()) == stored


def test_rows_of_q_and_k_are_the_files_rows_in_transformers_order(write_gguf):
    """llama.cpp turns pairs of neighbours, transformers the halves of a head: the bytes are the same, row by row."""
    model = tiny_model("llama")
    path = write_gguf(model, Kind.Q4_0)
    found = linears(load(path, {"format": "gguf"}))["model.layers.0.self_attn.q_proj"].weight_state.tensors["blocks"]
    entry = next(t for t in GgufSource(path).tensors() if t.name == "model.layers.0.self_attn.q_proj.weight")
    rows = entry.raw().view(found.shape)
    heads, half = model.config.num_attention_heads, 8
    for head in range(heads):
        for i in range(2 * half):
            pair, which = i % half, i // half
            assert torch.equal(found[head * 2 * half + i], rows[head * 2 * half + 2 * pair + which])


def test_the_bytes_survive_training_and_a_step_moves_only_the_adapter(write_gguf):
    base = load(write_gguf(tiny_model("llama"), Kind.Q4_1), {"format": "gguf"})
    before = {path: m.weight_state.tensors["blocks"].clone() for path, m in linears(base).items()}
    adapters = attach(base.model, LoraConfig(r=4))
    optimizer = torch.optim.Adam(list(adapters.parameters().values()), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = base.model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = {p.removesuffix(".base"): m.weight_state.tensors["blocks"] for p, m in linears(base).items()}
    assert all(torch.equal(after[path], blocks) for path, blocks in before.items())


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_llama_cpp_serves_the_very_file_with_the_adapter_that_was_trained_on_its_blocks(write_gguf, tmp_path, kind):
    model = tiny_model("qwen2", hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    file = write_gguf(model, kind)
    base = load(file, {"format": "gguf"})
    assert {m.weight_state.format for m in linears(base).values()} == {"gguf"}
    adapters = attach(base.model, LoraConfig(r=4, lora_alpha=16))
    optimizer = torch.optim.Adam(list(adapters.parameters().values()), lr=1e-2)
    for _ in range(5):
        base.model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    asked = [list(range(start, start + 25)) for start in (3, 63, 123)]
    tuned = last_logprobs(base, asked)
    with adapters.off():
        plain = last_logprobs(base, asked)
    done = export_gguf_lora(base, adapters, tmp_path / "out", "F32", [IDS[0].tolist()], lambda text: None)
    off = []
    with llama_cpp(file, done.file) as peer:
        for ids, with_adapter, alone in zip(asked, tuned, plain, strict=True):
            assert float((with_adapter - alone).abs().max()) > 1
            for expected, more in ((with_adapter, {}), (alone, {"lora": [{"id": 0, "scale": 0.0}]})):
                found = peer.next_logprobs(ids, **more)
                off += [abs(value - float(expected[token])) for token, value in found.items()]
    # llama.cpp rounds what goes into each product to 8 bits, on tiles of AMX more coarsely than elsewhere (Q4_0, Q8_0)
    coarse = kind in (Kind.Q4_0, Kind.Q8_0)
    assert statistics.median(off) < (0.12 if coarse else 0.05)
    assert max(off) < (0.5 if coarse else 0.15)  # the adapter moves them by more than 1


def test_k_blocks_of_a_file_are_kept(write_gguf):
    """The library cannot write them: a Q8_0 file's tensor is read as if its bytes were theirs."""
    source = GgufSource(write_gguf(tiny_model("qwen2", hidden_size=256, intermediate_size=256, layers=1), Kind.Q8_0))
    tensor = next(t for t in source.tensors() if t.name.endswith("gate_proj.weight"))
    for name in ("Q4_K", "Q5_K", "Q6_K"):
        kind = BLOCK_TYPES[name]
        raw = torch.randint(0, 100, (256 * kind.bytes,), dtype=torch.uint8)
        entry = type(tensor.entry)(tensor.entry.name, Kind[name], (256, 256), 0, raw.numel())
        faked = type(tensor)(
            tensor.name, name, (256, 256), source.path, raw.numel(), entry, tensor.family, source.config
        )
        q = faked.packed(raw, GgufConfig())
        assert torch.equal(q.tensors["blocks"].view(-1), raw)
        assert q.scalars["type"] == gguf.GGMLQuantizationType[name].value


def test_a_type_that_cannot_be_trained_is_named_with_those_that_can(write_gguf):
    source = GgufSource(write_gguf(tiny_model("qwen2", hidden_size=256, intermediate_size=256, layers=1), Kind.Q8_0))
    tensor = next(t for t in source.tensors() if t.name.endswith("gate_proj.weight"))
    entry = type(tensor.entry)(tensor.entry.name, Kind.Q2_K, (256, 256), 0, 256 * 84)
    faked = type(tensor)(tensor.name, "Q2_K", (256, 256), source.path, 256 * 84, entry, tensor.family, source.config)
    with pytest.raises(TopcoatError, match="stored as Q2_K, which cannot be trained as it lies") as caught:
        faked.packed(torch.zeros(256 * 84, dtype=torch.uint8), GgufConfig())
    assert "Q4_K" in caught.value.problems[0].fix


def test_scales_that_are_not_finite_are_refused(write_gguf):
    source = GgufSource(write_gguf(tiny_model("qwen2"), Kind.Q8_0))
    tensor = next(t for t in source.tensors() if t.name.endswith("gate_proj.weight"))
    raw = tensor.raw()
    raw[:2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    with pytest.raises(TopcoatError, match="scales of its blocks are not finite"):
        tensor.packed(raw, GgufConfig())


def test_a_directory_of_safetensors_has_no_blocks_to_keep(tmp_path):
    with pytest.raises(TopcoatError, match="keeps the blocks of a GGUF file"):
        load(save_tiny(tmp_path / "m"), {"format": "gguf"})


def test_other_formats_for_some_linears_and_whole_blocks_for_the_rest(write_gguf):
    base = load(write_gguf(tiny_model("llama"), Kind.Q4_0), {"format": "gguf", "overrides": {"down_proj": "int8"}})
    kinds = {path.rsplit(".", 1)[-1]: m.weight_state.format for path, m in linears(base).items()}
    assert kinds["down_proj"] == "int8"
    assert {kind for name, kind in kinds.items() if name != "down_proj"} == {"gguf"}
