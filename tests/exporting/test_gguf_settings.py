"""What a model's config says in a GGUF: its rotary scaling, and what GGUF has no word for."""

from __future__ import annotations

import pytest

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import TopcoatError
from topcoat.exporting.gguf_model import export_gguf
from topcoat.model.gguf_source import GgufSource
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny


def quiet(text: str) -> None:
    """Says nothing."""


def test_an_architecture_that_gguf_does_not_have_is_named(tmp_path, prompts):
    base = load_model(ModelSettings(path=str(save_tiny(tmp_path / "m", "olmo2")), compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, LoraConfig(r=2))
    with pytest.raises(TopcoatError, match="GGUF files of olmo2 models are not written") as caught:
        export_gguf(base, adapters, tmp_path / "out", None, prompts, quiet)
    assert "llama" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma3_text", {}, "GGUF's gemma3 cannot say that layer_types is"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "cannot say that query_pre_attn_scalar is 64: a reader takes 32"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "kind 'dynamic'"),
    ],
)
def test_a_setting_that_gguf_has_no_word_for_stops_the_export(tmp_path, prompts, name, changes, message):
    folder = save_tiny(tmp_path / "m", name, **changes)
    base = load_model(ModelSettings(path=str(folder), compute_dtype="fp32", device="cpu"))
    with pytest.raises(TopcoatError) as caught:
        export_gguf(base, attach(base.model, LoraConfig(r=2)), tmp_path / "out", None, prompts, quiet)
    assert message in str(caught.value)
    assert "topcoat merge" in caught.value.problems[0].fix
    assert not (tmp_path / "out").exists()


ROPES = {
    "llama3": {
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"rope_theta": 10_000.0, "factor": 2.0},
    "yarn": {"rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 256},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_scaling_is_written_and_read_back(tmp_path, prompts, kind):
    rope = {"rope_type": kind, **ROPES[kind]}
    folder = save_tiny(tmp_path / "m", "llama", rope_parameters=rope, max_position_embeddings=131_072)
    base = load_model(ModelSettings(path=str(folder), compute_dtype="fp32", device="cpu"))
    done = export_gguf(base, attach(base.model, LoraConfig(r=2)), tmp_path / "out", "F32", prompts, quiet)
    read = GgufSource(done.file).config.rope_parameters
    assert read["rope_type"] == kind
    assert done.proof.relative_error < 1e-5


def test_longrope_is_written_as_tables(tmp_path, prompts):
    factors = {"long_factor": [float(2 + i) for i in range(8)], "short_factor": [1.0 + i / 8 for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0} | factors
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 128}
    folder = save_tiny(tmp_path / "m", "phi3", rope_parameters=rope, **sizes)
    base = load_model(ModelSettings(path=str(folder), compute_dtype="fp32", device="cpu"))
    done = export_gguf(base, attach(base.model, LoraConfig(r=2)), tmp_path / "out", "F32", prompts, quiet)
    assert done.proof.relative_error < 1e-5
