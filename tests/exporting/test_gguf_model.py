"""A model written as GGUF: read back here, by transformers, by the gguf library and by llama.cpp, it is the model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from llama_cpp import llama_cpp
from transformers import AutoModelForCausalLM, AutoTokenizer

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import FullConfig, LoraConfig, QaloraConfig
from topcoat.errors import Refused, TopcoatError
from topcoat.exporting import gguf_file, gguf_model, gguf_plan
from topcoat.exporting.choices import BLOCK_TYPES, FLOAT_TYPES
from topcoat.exporting.gguf_layout import layout_of
from topcoat.exporting.gguf_model import export_gguf
from topcoat.exporting.integers import Integers, as_q4_1, integers_of
from topcoat.model.gguf_source import GgufSource
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny, tiny_model
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GgufConfig, IntConfig

OWN = {
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2},  # GGUF's pattern has its first full layer at the sixth
    "smollm3": {"no_rope_layer_interval": 4, "layers": 4},
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "gpt_neox")


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """model_type -> the directory of a tiny model that GGUF can hold, written once. Its name says no family."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny(root / str(len(made)) / "model", name, **OWN.get(name, {}))
        return made[name]

    return folder


@pytest.fixture
def trained_on(folder_of):
    """(model_type, quantization, adapter) -> base and an adapter that has learned something."""

    def make(name="llama", quantization=None, config=None):
        settings = {"path": str(folder_of(name)), "compute_dtype": "fp32", "device": "cpu"}
        base = load_model(ModelSettings(**settings, quantization=quantization))
        adapters = attach(base.model, config or LoraConfig(r=2))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return base, adapters

    return make


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_back_as_the_model_it_was(trained_on, logits, prompts, tmp_path, name):
    base, adapters = trained_on(name)
    expected = logits(base.model)
    done = export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet)
    assert done.proof.relative_error < 1e-5
    again = load_model(ModelSettings(path=str(done.file), compute_dtype="fp32", device="cpu"))
    assert off(logits(again.model), expected) < 1e-5
    text = "It's 12 o'clock: où est\n  the <|im_end|> printer?"
    assert again.tokenizer(text).input_ids == base.tokenizer(text).input_ids
    assert again.tokenizer.chat_template == base.tokenizer.chat_template


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_transformers_own_reader_computes_the_same(trained_on, logits, prompts, tmp_path, name):
    """Its reader leaves out head widths and soft caps, so families that need them are not asked."""
    base, adapters = trained_on(name)
    expected = logits(base.model)
    done = export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet)
    keywords = {"gguf_file": done.file.name, "dtype": torch.float32}
    model, info = AutoModelForCausalLM.from_pretrained(done.file.parent, **keywords, output_loading_info=True)
    assert not any(info.values())
    assert off(logits(model), expected) < 1e-5
    tokenizer = AutoTokenizer.from_pretrained(done.file.parent, gguf_file=done.file.name)
    text = "The printer is 12, it's"
    assert tokenizer(text).input_ids == base.tokenizer(text).input_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_the_same(trained_on, tmp_path, prompts, name):
    """Next-token log probabilities on prompts of 25 tokens; llama.cpp keeps keys and values in fp16."""
    base, adapters = trained_on(name)
    done = export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet)
    compared = 0
    with llama_cpp(done.file) as peer:
        text = "Où est the 1234 printer?<|im_end|>\n  def add(a, b): it's 日本"
        assert peer.tokenize(text) == base.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in (3, 63, 123, 183):
            ids = list(range(start, start + 25))
            with torch.no_grad():
                own = base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            for token, value in peer.next_logprobs(ids).items():
                assert abs(float(own[token]) - value) < 0.05, (start, token)
                compared += 1
    assert compared >= 40


def test_llama_cpp_serves_the_integers_that_were_trained(trained_on, tmp_path, prompts):
    base, adapters = trained_on("llama", IntConfig(), QaloraConfig(r=2))
    done = export_gguf(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert (done.type, done.exact) == ("Q4_1", True)
    with llama_cpp(done.file) as peer:
        compared = 0
        for start in (3, 63, 123, 183):
            ids = list(range(start, start + 25))
            with torch.no_grad():
                own = base.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            found = peer.next_logprobs(ids)
            compared += len(found)
            assert all(
                abs(float(own[token]) - value) < 0.2 for token, value in found.items()
            )  # it rounds inputs to 8 bits
    assert compared >= 40


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("group", [32, 64])
def test_the_integers_of_a_qalora_are_in_the_file_as_they_were_trained(trained_on, prompts, tmp_path, bits, group):
    """Codes and d bit for bit, m the fp16 nearest to low + s / S B A: by the gguf library's own reader."""
    config = QaloraConfig(r=1, qalora_group_size=group)
    base, adapters = trained_on("qwen2", IntConfig(format=f"int{bits}", group_size=group), config)
    layer = adapters.layers["model.layers.1.mlp.down_proj"]
    done = export_gguf(base, adapters, tmp_path / "out", "Q4_1", prompts, quiet)
    assert done.exact
    assert done.proof.relative_error < 5e-3
    tensor = next(t for t in gguf.GGUFReader(done.file).tensors if t.name == "blk.1.ffn_down.weight")
    assert tensor.tensor_type == Kind.Q4_1
    found = torch.from_numpy(gguf.quants.dequantize(tensor.data, Kind.Q4_1).copy())
    own = integers_of(layer.base)
    update = layer.scale / group * layer.lora_B.double() @ layer.lora_A.double()
    low = (own.low.double() + update).float().half().float()
    grouped = own.codes.float().unflatten(1, (-1, group)) * own.scale[..., None] + low[..., None]
    assert torch.equal(found, grouped.flatten(1))
    assert (grouped.flatten(1) - layer.merged_weight()).abs().max() <= low.abs().max() * 2**-11 + 1e-6


def test_integers_that_blocks_cannot_hold_are_exported_in_16_bits(trained_on, prompts, tmp_path):
    base, adapters = trained_on("qwen2", IntConfig(group_size=16), QaloraConfig(r=1, qalora_group_size=16))
    assert not export_gguf(base, adapters, tmp_path / "out", None, prompts, quiet).exact


def test_beside_the_integers_nothing_is_rounded(trained_on, prompts, tmp_path):
    base, adapters = trained_on("llama", IntConfig(), QaloraConfig(r=2, target_modules=["q_proj"]))
    done = export_gguf(base, adapters, tmp_path / "out", None, prompts, quiet)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(done.file).tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.0.ffn_down.weight"] == "Q4_1"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "F32"  # the checkpoint's own


def test_a_qalora_on_blocks_of_a_gguf_goes_back_into_such_a_file(trained_on, prompts, tmp_path, logits):
    """Trained on a file as it lies, the merged file differs in the m of its blocks, and nowhere else."""
    base, adapters = trained_on("llama")
    first = export_gguf(base, adapters, tmp_path / "first", "Q4_1", prompts, quiet)
    settings = ModelSettings(path=str(first.file), quantization=GgufConfig(), compute_dtype="fp32", device="cpu")
    base = load_model(settings)
    adapters = attach(base.model, QaloraConfig(r=2))
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.05)
    expected = logits(base.model)
    done = export_gguf(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert done.exact
    assert off(logits(load_model(settings.model_copy(update={"path": str(done.file)})).model), expected) < 5e-3
    one, two = (gguf.GGUFReader(file).tensors for file in (first.file, done.file))
    two = {tensor.name: tensor for tensor in two}
    for tensor in one:
        old, new = tensor.data, two[tensor.name].data
        assert tensor.tensor_type == two[tensor.name].tensor_type
        if tensor.tensor_type == Kind.Q4_1:
            old, new = (data.reshape(-1, 20) for data in (old, new))
            assert (old[:, :2] == new[:, :2]).all()
            assert (old[:, 4:] == new[:, 4:]).all()
        else:
            assert (old == new).all(), tensor.name


@pytest.mark.parametrize("kind", [*FLOAT_TYPES, *BLOCK_TYPES])
def test_every_type_holds_the_merged_weights_rounded_to_it(trained_on, prompts, tmp_path, kind):
    base, adapters = trained_on("qwen2")
    done = export_gguf(base, adapters, tmp_path / "out", kind, prompts, quiet)
    assert done.type == kind
    assert done.proof.holds
    tensor = next(t for t in gguf.GGUFReader(done.file).tensors if t.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type.name == kind
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    merged = adapters.layers["model.layers.0.mlp.up_proj"].merged_weight()
    expected = gguf.quants.dequantize(gguf.quants.quantize(merged.numpy(), Kind[kind]), Kind[kind])
    assert (found == expected).all()


def test_small_types_keep_embedding_norms_and_odd_rows_in_larger_ones(tmp_path, prompts, trained_on, folder_of):
    base, adapters = trained_on("llama")
    done = export_gguf(base, adapters, tmp_path / "out", "Q4_0", prompts, quiet)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(done.file).tensors}
    assert (kinds["token_embd.weight"], kinds["output.weight"], kinds["output_norm.weight"]) == ("Q8_0", "Q8_0", "F32")
    assert gguf_file.kind_of("blk.0.ffn_down.weight", (64, 36), "Q4_0") == "F16"


def test_a_full_fine_tune_is_exported_whole(folder_of, logits, prompts, tmp_path):
    base = load_model(ModelSettings(path=str(folder_of("qwen2")), compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, FullConfig())
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.mul_(1.01)
    assert export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet).proof.relative_error < 1e-5


def test_modules_and_rows_trained_beside_the_adapter_are_in_the_file(trained_on, prompts, tmp_path):
    config = LoraConfig(r=2, modules_to_save=["lm_head", "norm"], trainable_token_indices=[7, 200])
    base, adapters = trained_on("llama", None, config)
    assert export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet).proof.relative_error < 1e-5


def test_what_the_folder_holds_is_complete(trained_on, prompts, tmp_path, folder_of):
    licence = folder_of("llama") / "LICENSE"
    licence.write_text("Do as you like.")
    base, adapters = trained_on("llama")
    said: list[str] = []
    done = export_gguf(base, adapters, tmp_path / "out", None, prompts, said.append)
    licence.unlink()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["LICENSE", "gguf_proof.json", "model.gguf"]
    stated = json.loads((tmp_path / "out" / "gguf_proof.json").read_text())
    assert stated == json.loads(json.dumps(done.as_json()))
    assert stated["verified"] is True
    assert stated["bytes"] == done.file.stat().st_size
    assert said[0] == "writing F16 weights"
    metadata = GgufSource(done.file).header.metadata
    assert metadata["general.type"] == "model"
    assert metadata["general.file_type"] == 1
    assert metadata["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize("missing", ["rows", "values"])
def test_a_file_with_rows_in_another_order_is_refused_and_leaves_nothing(
    trained_on, prompts, tmp_path, monkeypatch, missing
):
    base, adapters = trained_on("llama")
    monkeypatch.setattr(type(layout_of(base.source.config)), missing, lambda self, name, values: values)
    with pytest.raises(Refused, match=r"[qk]_proj.weight reads back from the file as other numbers"):
        export_gguf(base, adapters, tmp_path / "out", "F32", prompts, quiet)
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_those_of_base_and_adapter_are_refused(trained_on, prompts, tmp_path, monkeypatch):
    base, adapters = trained_on("llama")
    monkeypatch.setattr(gguf_model, "TOLERANCES", {"F16": 1e-9})
    with pytest.raises(Refused, match="does not compute what it should: its logits are off by"):
        export_gguf(base, adapters, tmp_path / "out", "F16", prompts, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "fix"),
    [("BF16", "--type f16 or f32 holds it"), ("Q4_0", "--type q4_1, q5_1 or q8_0"), ("Q4_1", "--type q5_1 or q8_0")],
)
def test_a_file_that_fails_its_proof_names_the_types_that_hold_more(
    trained_on, prompts, tmp_path, monkeypatch, kind, fix
):
    base, adapters = trained_on("llama")
    monkeypatch.setitem(gguf_model.TOLERANCES, kind, 1e-12)
    with pytest.raises(Refused, match="does not compute what it should") as caught:
        export_gguf(base, adapters, tmp_path / "out", kind, prompts, quiet)
    assert fix in caught.value.problems[0].fix
    assert "defect" not in caught.value.problems[0].fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("alike", "kind", "warned"),
    [(1.1, "Q4_0", "--type q4_1, q5_1 or q8_0"), (1.1, "Q5_1", "--type q8_0"), (0, "Q4_0", None), (1.1, "Q8_0", None)],
)
def test_a_rounding_that_moves_many_tokens_is_warned_of(
    trained_on, prompts, tmp_path, monkeypatch, alike, kind, warned
):
    """Where larger types are left, and not where the share of tokens that stay is high enough."""
    monkeypatch.setattr(gguf_model, "FEW_ALIKE", alike)
    base, adapters = trained_on("llama")
    told = []
    done = export_gguf(base, adapters, tmp_path / "out", kind, prompts, told.append)
    changed = f"{1 - done.proof.top1_agreement:.0%}"
    wanted = [f"warning: {kind} changes the likeliest token at {changed} of the positions; {warned} rounds less"]
    assert [text for text in told if "warning" in text] == (wanted if warned else [])


def test_integers_as_they_were_trained_are_never_called_coarse(trained_on, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_model, "FEW_ALIKE", 1.1)
    base, adapters = trained_on("qwen2", IntConfig(), QaloraConfig(r=1))
    told = []
    assert export_gguf(base, adapters, tmp_path / "out", None, prompts, told.append).type == "Q4_1"
    assert not [text for text in told if "warning" in text]


def test_a_tensor_too_many_or_too_few_is_no_file(tmp_path):
    slots = {"a": gguf_file.Slot((2, 3), "F32"), "b": gguf_file.Slot((4,), "F32")}
    data = {"a": torch.zeros(24, dtype=torch.uint8), "b": torch.zeros(16, dtype=torch.uint8)}
    for wrong in ({"a": data["a"]}, data | {"c": data["a"]}, {"a": data["b"]}):
        with pytest.raises(ValueError, match=r"were not written|has no place"):
            gguf_file.write_gguf(tmp_path / "x.gguf", "llama", {}, slots, wrong.items())


@pytest.mark.parametrize(
    ("stored", "message", "fix"),
    [
        (IntConfig(group_size=16), "has groups of 16 weights, and Q4_1 has blocks of 32", "group_size: 32"),
        (IntConfig(scale_dtype="fp32"), "are float32, and Q4_1 stores fp16", "scale_dtype: fp16"),
    ],
)
def test_integers_that_blocks_of_32_cannot_hold_are_refused(stored, message, fix):
    linear = FrozenLinear.from_dense(torch.randn(4, 64), None, stored, torch.float32)
    with pytest.raises(TopcoatError, match=message) as caught:
        as_q4_1(integers_of(linear), "q_proj")
    assert fix in caught.value.problems[0].fix


def test_a_lowest_value_beyond_fp16_is_refused():
    weight = Integers(torch.zeros(1, 32, dtype=torch.uint8), torch.ones(1, 1), torch.full((1, 1), 1e5))
    with pytest.raises(TopcoatError, match=r"lowest values of q reach 1e\+05, and fp16 ends at 65504"):
        as_q4_1(weight, "q")


def test_values_beyond_fp16_are_refused_with_the_wider_type():
    with pytest.raises(TopcoatError, match="are not finite in F16") as caught:
        gguf_file.encode(torch.tensor([[1e6]]), "F16")
    assert "bf16" in caught.value.problems[0].fix


def test_exporting_needs_a_prompt_to_prove_itself_on(trained_on, tmp_path):
    base, adapters = trained_on("llama")
    with pytest.raises(TopcoatError, match="no prompts to prove the file on"):
        export_gguf(base, adapters, tmp_path / "out", None, [], quiet)


def test_a_name_that_is_no_part_of_the_architecture_is_refused():
    layout = layout_of(tiny_model("llama").config)
    assert layout.name("model.layers.3.self_attn.q_proj.weight") == "blk.3.attn_q.weight"
    with pytest.raises(TopcoatError, match=r"GGUF has no place for model\.layers\.0\.mystery\.weight"):
        layout.name("model.layers.0.mystery.weight")


def test_no_tensor_is_made_before_it_is_written(trained_on, monkeypatch, prompts, tmp_path):
    """At most one merged tensor at a time is alive while the file is written."""
    import weakref

    alive, most = weakref.WeakSet(), 0
    merged = gguf_plan.merged_tensors

    def watched(*arguments):
        nonlocal most
        for name, tensor in merged(*arguments):
            alive.add(tensor)
            most = max(most, len(alive))
            yield name, tensor
            del tensor

    monkeypatch.setattr(gguf_plan, "merged_tensors", watched)
    base, adapters = trained_on("llama")
    export_gguf(base, adapters, tmp_path / "out", "Q8_0", prompts, quiet)
    assert most <= 3
