"""Quantized checkpoints: written by Topcoat, loaded by transformers + bitsandbytes, the same numbers."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from topcoat.errors import TopcoatError
from topcoat.exporting.calibrating import rounded_linears
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.normal_float import Nf4
from topcoat.quant.settings import (
    DenseConfig,
    Fp4Config,
    GgufConfig,
    GptqConfig,
    Int8Config,
    IntConfig,
    Nf4Config,
    NormalFloatConfig,
    NormalFloatIcqConfig,
    StoredConfig,
)

NF4 = [Nf4Config(), Nf4Config(double_quant=False), Nf4Config(block_size=32), Fp4Config(), Fp4Config(double_quant=False)]
IDS = torch.randint(3, 400, (2, 19), generator=torch.Generator().manual_seed(0))
PROMPT = "The user asks a question"


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2", "gpt_neox"])
def tiny(request, tmp_path_factory):
    """qwen2 ties its head and has biases, gemma2's heads are not its hidden size, gpt_neox names all differently."""
    return save_tiny(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


def ours(folder, config):
    settings = ModelSettings(
        path=str(folder), quantization=config, compute_dtype="fp32", device="cpu", attention="eager"
    )
    return load_model(settings).model


def logits(model):
    """In training mode, where bitsandbytes computes in the dtype of the input; its CPU inference is bf16 or int8."""
    return model.train()(input_ids=IDS).logits.detach()


def linears(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("config", [Nf4Config(), Nf4Config(double_quant=False), Fp4Config(), Int8Config()], ids=str)
def test_transformers_and_bitsandbytes_compute_what_we_compute(tiny, tmp_path, config):
    bnb = pytest.importorskip("bitsandbytes")
    quantize_checkpoint(DirectorySource(tiny), tmp_path / "out", config, "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True, attn_implementation="eager")
    model = ours(tiny, config)
    kind = bnb.nn.Linear4bit if config.format in ("nf4", "fp4") else bnb.nn.Linear8bitLt
    assert set(linears(theirs, kind)) == set(linears(model, FrozenLinear))  # blocks only: no head
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # and with the inference kernels: 2 % of the largest logit
        difference = (theirs.eval()(input_ids=IDS).logits.float() - logits(model)).abs().max()
    assert difference < 0.03 * logits(model).abs().max()


@pytest.mark.parametrize("config", NF4, ids=str)
def test_bitsandbytes_reads_back_the_very_weights(llama, tmp_path, config):
    bnb = pytest.importorskip("bitsandbytes")
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config, "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    model = linears(ours(llama, config), FrozenLinear)
    for name, module in linears(theirs, bnb.nn.Linear4bit).items():
        weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(weight, model[name].dense_weight(torch.float32)), name


@pytest.mark.parametrize("config", NF4, ids=str)
def test_the_file_is_the_one_transformers_would_write(llama, tmp_path, config):
    """Every tensor of a linear, its quant_state JSON included, byte for byte, against bitsandbytes' own writer."""
    bnb = pytest.importorskip("bitsandbytes")
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config, "bf16")
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight = load_file(llama / "model.safetensors")[f"{name}.weight"]
    codes, state = bnb.functional.quantize_4bit(
        weight, blocksize=config.block_size, quant_type=config.format, compress_statistics=config.double_quant
    )
    state.dtype = torch.bfloat16  # transformers casts the weight to the model's dtype before it quantizes
    expected = {f"{name}.weight": codes}
    expected |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    assert {key for key in written if key.startswith(name)} == set(expected)
    for key, value in expected.items():
        assert written[key].dtype == value.dtype, key
        assert torch.equal(written[key], value), key


def test_a_dense_copy_is_an_ordinary_checkpoint_in_that_dtype(tiny, tmp_path):
    report = quantize_checkpoint(DirectorySource(tiny), tmp_path / "out", DenseConfig(format="fp16"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    source = load_file(tiny / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert {name.replace("embed_out", "lm_head") for name in source} == {
        name.replace("embed_out", "lm_head") for name in written
    }
    assert report["bits_per_weight"] == 16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=0.02, atol=0.02)


def test_the_config_says_how_to_load_it(llama, tmp_path):
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Nf4Config())
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = facts["quantization_config"]
    assert facts["dtype"] == quantization["bnb_4bit_compute_dtype"] == "bfloat16"
    assert quantization["quant_method"] == "bitsandbytes"
    assert quantization["load_in_4bit"] is True
    assert quantization["bnb_4bit_quant_type"] == "nf4"
    assert quantization["bnb_4bit_use_double_quant"] is True
    assert quantization["llm_int8_skip_modules"] == ["lm_head"]


def test_the_tokenizer_and_generation_settings_come_along(llama, tmp_path):
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Int8Config())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (llama / name).read_bytes()


def test_a_source_without_files_to_copy_gets_its_tokenizer_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(DirectorySource, "files_to_copy", lambda self: [])  # as a GGUF has none
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Int8Config())
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (llama, tmp_path / "out"))
    assert one(PROMPT)["input_ids"] == other(PROMPT)["input_ids"]
    assert one.chat_template == other.chat_template
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_large_checkpoints_are_cut_into_shards_with_an_index(llama, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantize_checkpoint(DirectorySource(llama), tmp_path / "one", Nf4Config(), "fp32")
    report = quantize_checkpoint(DirectorySource(llama), tmp_path / "many", Nf4Config(), "fp32", shard_bytes=100_000)
    assert len(report["files"]) > 2
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(report["files"])
    assert index["metadata"]["total_size"] == report["bytes"]
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name, local_files_only=True) for name in ("one", "many")]
    assert torch.equal(logits(models[0]), logits(models[1]))


def test_the_report_tells_what_was_written(llama, tmp_path):
    report = quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Nf4Config())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118  not a dict
    assert report["format"] == "nf4"
    assert report["linears"] == 14
    assert report["tensors"] == len(tensors)
    assert report["bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert 4.12 < report["bits_per_weight"] < 4.2
    assert report["warnings"] == []


def test_only_one_tensor_is_in_memory_at_a_time(llama, tmp_path, monkeypatch):
    import weakref

    alive, most, quantize = weakref.WeakSet(), 0, Nf4.quantize

    def watched(self, weight):
        nonlocal most
        alive.add(weight)
        most = max(most, len(alive))
        return quantize(self, weight)

    monkeypatch.setattr(Nf4, "quantize", watched)
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Nf4Config())
    assert most <= 2  # the one being read, while the last one's name is rebound


def test_widths_that_bitsandbytes_misreads_on_a_cpu_are_reported(tmp_path):
    folder = save_tiny(tmp_path / "odd", "llama", hidden_size=96, num_attention_heads=4)
    report = quantize_checkpoint(DirectorySource(folder), tmp_path / "out", Nf4Config())
    assert "in_features is 96" in report["warnings"][0]


def test_a_damaged_weight_is_named_and_nothing_is_left(llama, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        damaged = {key: value.clone() for key, value in tensors.items()}
        damaged[name].view(-1)[3] = torch.nan
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TopcoatError, match="not finite") as caught:
            quantize_checkpoint(DirectorySource(folder), tmp_path / "out", Nf4Config())
        assert name in str(caught.value)
        assert "damaged" in caught.value.problems[0].fix
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_an_existing_folder_is_not_overwritten(llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(TopcoatError, match="exists already"):
        quantize_checkpoint(DirectorySource(llama), tmp_path / "out", Nf4Config())
    assert (tmp_path / "out" / "mine").read_text() == "keep"


OWN = [
    IntConfig(),
    IntConfig(format="int3", rounding="hqq", scale_dtype="fp32"),
    IntConfig(format="int2", rounding="icq", group_size=16),
    NormalFloatConfig(format="nf3"),
    NormalFloatConfig(format="nf2", double_quant=False),
    NormalFloatIcqConfig(search_points=3),
    NormalFloatIcqConfig(format="nf3-icq", search_points=3),
    GgufConfig(type="Q4_0"),
    GptqConfig(group_size=32),
    GptqConfig(bits=8, group_size=-1, sym=True),
    GptqConfig(bits=3, group_size=32),
    Nf4Config(overrides={"down_proj": "int8", "layers.0.*": "bf16", "v_proj": {"format": "int3"}}),
    IntConfig(overrides={"lm_head": "int8", "embed_tokens": {"format": "gptq", "bits": 8, "group_size": 64}}),
    DenseConfig(overrides={"*.mlp.*": "fp4"}),
]


def frozen(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, FrozenLinear | FrozenEmbedding)}


@pytest.mark.parametrize("config", OWN, ids=str)
def test_what_is_written_loads_as_the_very_same_bytes(llama, tmp_path, config):
    report = quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config, "fp32")
    wanted, found = frozen(ours(llama, config)), frozen(ours(tmp_path / "out", StoredConfig()))
    assert set(found) == set(wanted)
    assert report["linears"] == len(wanted)
    for name, module in wanted.items():
        state = found[name].weight_state
        assert state.format == module.weight_state.format
        for key, tensor in module.weight_state.tensors.items():
            assert torch.equal(state.tensors[key], tensor), (name, key)
    stored = sum(module.weight_state.nbytes for module in wanted.values())
    weights = sum(module.weight_state.shape[0] * module.weight_state.shape[1] for module in wanted.values())
    assert report["bits_per_weight"] == 8 * stored / weights
    if not config.overrides:  # asked for by name it is the same, however the codes were found
        named = frozen(ours(tmp_path / "out", config))
        assert all(
            torch.equal(named[n].dense_weight(torch.float32), m.dense_weight(torch.float32)) for n, m in wanted.items()
        )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_gptq_file_means_by_its_definition_what_topcoat_computes_with(llama, tmp_path, bits):
    """Unpacked here one code at a time: version 1, low bits first, zero - 1."""
    config = GptqConfig(bits=bits, group_size=32)
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config)
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (facts["quant_method"], facts["checkpoint_format"], facts["bits"]) == ("gptq", "gptq", bits)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    path = "model.layers.1.self_attn.k_proj"
    qweight, qzeros, scales, g_idx = (tensors[f"{path}.{n}"] for n in ("qweight", "qzeros", "scales", "g_idx"))
    assert (qweight.dtype, qzeros.dtype, scales.dtype) == (torch.int32, torch.int32, torch.float16)

    def code(words, place):
        number = sum((int(word) & 0xFFFFFFFF) << 32 * at for at, word in enumerate(words))
        return (number >> place * bits) & (2**bits - 1)

    found = torch.empty(32, 64, dtype=torch.float64)
    for o in range(32):
        for i in range(64):
            group = int(g_idx[i])
            zero = code(qzeros[group], o) + 1
            found[o, i] = scales[group, o].double() * (code(qweight[:, o], i) - zero)
    assert torch.equal(frozen(ours(llama, config))[path].dense_weight(torch.float64), found)


def test_rounded_linears_are_written_as_they_were_found(llama, tmp_path):
    config = GptqConfig(group_size=32, rounding="gptq")
    settings = ModelSettings(path=str(llama), quantization=config, compute_dtype="fp32", device="cpu")
    found = list(rounded_linears(DirectorySource(llama), settings, [list(range(3, 60))]))
    report = quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config, "fp32", rounded=found)
    assert len(report["errors"]) == 14
    stored = frozen(ours(tmp_path / "out", StoredConfig()))
    for one in found:
        for name, tensor in one.weight.tensors.items():
            assert torch.equal(stored[one.path].weight_state.tensors[name], tensor)


def test_a_model_whose_rows_fill_no_whole_words_is_refused(tmp_path):
    path = save_tiny(tmp_path / "odd", "llama", intermediate_size=120)
    with pytest.raises(TopcoatError, match="has 120 inputs, and 3-bit codes of them do not fill words of 32 bits"):
        quantize_checkpoint(DirectorySource(path), tmp_path / "out", GptqConfig(bits=3, group_size=-1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [StoredConfig(), GgufConfig()], ids=lambda c: c.format)
def test_formats_that_keep_what_is_there_are_not_written(llama, tmp_path, config):
    with pytest.raises(TopcoatError, match="keeps what is there already"):
        quantize_checkpoint(DirectorySource(llama), tmp_path / "out", config)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t, n: t.pop(f"{n}.scale"), r"it has \['codes', 'low'\], and should have"),
        (lambda t, n: t.update({f"{n}.low": t[f"{n}.low"].float()}), "low is F32"),
        (lambda t, n: t.update({f"{n}.codes": t[f"{n}.codes"][:-1].clone()}), "codes is U8"),
        (lambda t, n: t.update({f"{n}.topcoat": torch.zeros(4, dtype=torch.uint8)}), "its description cannot be read"),
    ],
)
def test_damage_to_our_own_layout_is_named(llama, tmp_path, change, what):
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", IntConfig())
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    change(tensors, "model.layers.0.mlp.up_proj.weight")
    save_file(tensors, file)
    with pytest.raises(TopcoatError, match=what) as caught:
        ours(tmp_path / "out", StoredConfig())
    assert "quantized by Topcoat" in str(caught.value)


def test_a_layout_of_another_version_is_refused(llama, tmp_path):
    quantize_checkpoint(DirectorySource(llama), tmp_path / "out", IntConfig())
    file = tmp_path / "out" / "config.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(TopcoatError, match=r"another version of Topcoat \(layout 2\)"):
        ours(tmp_path / "out", StoredConfig())
