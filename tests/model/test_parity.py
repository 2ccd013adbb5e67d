"""The attention that trains computes what the architecture's own definition computes."""

import pytest
import torch

from topcoat.errors import Refused
from topcoat.model import attention
from topcoat.model.load import load_model
from topcoat.model.parity import (
    attention_difference,
    packing_difference,
    require_attention_parity,
    require_separate_documents,
)
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import TINY_TYPES, save_tiny

IDS = [(7 * i) % 300 + 3 for i in range(70)]  # longer than the tiny models' sliding window of 32


@pytest.fixture(params=TINY_TYPES)
def model(request, tmp_path):
    save_tiny(tmp_path / "m", request.param)
    return load_model(ModelSettings(path=str(tmp_path / "m"), compute_dtype="fp32", device="cpu")).model


def test_every_family_agrees_with_eager(model):
    before = model.config._attn_implementation
    assert require_attention_parity(model, IDS, torch.float32) < 1e-5
    assert model.config._attn_implementation == before


def test_a_backend_that_forgets_the_soft_cap_and_the_window_is_refused(tmp_path, monkeypatch):
    save_tiny(tmp_path / "m", "gemma2", attn_logit_softcapping=0.05)
    model = load_model(ModelSettings(path=str(tmp_path / "m"), compute_dtype="fp32", device="cpu")).model
    assert attention_difference(model, IDS) < 1e-5
    monkeypatch.setattr(attention, "Shape", lambda scale, window, softcap: _shape(scale))
    with pytest.raises(Refused, match=r"attention topcoat differs.*is rounding"):
        require_attention_parity(model, IDS, torch.float32)


def test_packed_documents_are_apart_in_every_family(model):
    require_separate_documents(model, IDS, IDS[::-1], torch.float32)
    assert packing_difference(model, IDS, IDS[::-1]) < 1e-5


def test_an_architecture_whose_packed_documents_see_each_other_is_refused(tmp_path):
    save_tiny(tmp_path / "m", "opt")  # learned positions, counted from the mask: it never sees them restart
    model = load_model(ModelSettings(path=str(tmp_path / "m"), compute_dtype="fp32", device="cpu")).model
    with pytest.raises(Refused, match=r"packed examples see each other in OPTForCausalLM(.|\n)*packing: false"):
        require_separate_documents(model, IDS, IDS[::-1], torch.float32)


def test_a_model_whose_logits_are_not_finite_is_refused(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(Refused, match=r"not finite before any training"):
        require_attention_parity(model, IDS, torch.float32)


def _shape(scale: float):
    from topcoat.kernels.attention import Shape

    return Shape(scale)
