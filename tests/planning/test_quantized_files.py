"""Plans of checkpoints that are quantized already: the bytes of their linears, as the files have them."""

import json
import shutil

import pytest

from topcoat.adapters.settings import LoraConfig
from topcoat.errors import TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.planning.counts import counts_of
from topcoat.planning.model_files import find_architecture
from topcoat.planning.possible import require_possible
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GptqConfig, IntConfig, Nf4Config, StoredConfig


@pytest.mark.parametrize("config", [GptqConfig(group_size=32), IntConfig(), Nf4Config()], ids=lambda c: c.format)
def test_stored_linears_are_counted_within_what_describes_them(tiny_llama, tmp_path, config):
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", config)
    planned = counts_of(find_architecture(str(tmp_path / "q")), LoraConfig(), StoredConfig())
    model = load_model(ModelSettings(path=str(tmp_path / "q"), quantization=StoredConfig(), device="cpu")).model
    states = [m.weight_state for m in model.modules() if isinstance(m, FrozenLinear)]
    stored = sum(q.nbytes for q in states)
    # a description of a few hundred bytes a linear, or GPTQ's group of every input, weigh on a tiny model only
    assert stored <= planned.codes_bytes + planned.constant_bytes <= stored + 1400 * len(states)
    assert planned.quantized


@pytest.mark.parametrize("dtype", ["float32", None])
def test_a_plain_checkpoint_kept_as_it_is_stored_is_counted_as_plain_numbers(tiny_llama, tmp_path, dtype):
    shutil.copytree(tiny_llama, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "config.json").read_text())
    facts.pop("torch_dtype", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(facts | {"dtype": dtype}))  # null: the headers are asked
    planned = counts_of(find_architecture(str(tmp_path / "m")), LoraConfig(), StoredConfig())
    model = load_model(ModelSettings(path=str(tmp_path / "m"), quantization=StoredConfig(), device="cpu")).model
    stored = sum(m.weight_state.nbytes for m in model.modules() if isinstance(m, FrozenLinear))
    assert planned.codes_bytes + planned.constant_bytes == stored
    assert not planned.quantized


def test_a_head_that_the_files_store_quantized_is_known_before_it_is_loaded(tiny_llama, tmp_path):
    ends = {"lm_head": "int8", "embed_tokens": "int8"}
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", Nf4Config(overrides=ends))
    found = find_architecture(str(tmp_path / "q"))
    rows = LoraConfig(trainable_token_indices=[3])
    with pytest.raises(TopcoatError, match=r"rows of model\.embed_tokens, and model\.embed_tokens is stored as int8"):
        require_possible(found, rows, StoredConfig())
    require_possible(found, rows, Nf4Config())  # reads them as plain numbers


def test_a_plain_checkpoint_has_no_such_bytes(tiny_llama):
    assert find_architecture(str(tiny_llama)).stored_linear_bytes is None
