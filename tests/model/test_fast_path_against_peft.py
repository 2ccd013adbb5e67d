"""Fifty steps by the fast path and by transformers with PEFT, from one adapter start, on the same batches."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor

from topcoat.adapters.attach import attach
from topcoat.adapters.files import save_adapter
from topcoat.adapters.settings import LoraConfig
from topcoat.kernels.linear_cross_entropy import linear_cross_entropy
from topcoat.model.attention import attention_inputs, register
from topcoat.model.fuse import FusedModel, fuse
from topcoat.model.head import plain_head
from topcoat.model.tiny import VOCAB, tiny_model

STEPS, ROWS, LENGTH, RATE = 50, 4, 24, 5e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def batches() -> list[Tensor]:
    """The same rows again and again, so that the loss has somewhere to go."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(3, VOCAB - 8, (12, LENGTH), generator=generator)
    return [rows[torch.randint(12, (ROWS,), generator=generator)] for _ in range(STEPS)]


def topcoat_losses(model, adapters, policy: str, shift: int = 1) -> list[float]:
    """Packed rows through the hand-written blocks and the loss without logits."""
    fused, head = fuse(model, policy), plain_head(model)
    assert isinstance(fused, FusedModel)
    assert head is not None
    parameters = list(adapters.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    positions = torch.arange(LENGTH).repeat(ROWS)[None]
    spans = [(row * LENGTH, LENGTH) for row in range(ROWS)]
    labelled = torch.cat([torch.arange(a, a + n - 1) for a, n in spans])
    losses = []
    for ids in batches():
        flat = ids.flatten()
        hidden = fused.hidden(attention_inputs(model, flat[None], positions, spans), labelled)
        wanted = flat.roll(-shift)[labelled]
        loss = linear_cross_entropy(hidden, head.weight, wanted, head.softcap) / len(labelled)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def peft_losses(model) -> list[float]:
    """Padded rows through transformers' layers and its own loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    losses = []
    for ids in batches():
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def both(name: str, dtype: torch.dtype):
    """One random base twice: ours with an adapter, and PEFT's with the same start."""
    register()
    base = tiny_model(name, dtype=dtype)
    theirs = get_peft_model(copy.deepcopy(base), PeftConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    base.config._attn_implementation = "topcoat"
    adapters = attach(base, LoraConfig(r=4, lora_alpha=8.0, target_modules=TARGETS))
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for path, parameter in adapters.parameters().items():
            module, kind = path.rsplit(".", 1)
            start = named[f"base_model.model.{module}.{kind}.default.weight"]
            start.data = start.data.float()  # PEFT's own autocast_adapter_dtype
            start.copy_(parameter)
    return base, adapters, theirs


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("policy", ["none", "block"])
def test_fifty_losses_agree_in_float32(name: str, policy: str) -> None:
    base, adapters, theirs = both(name, torch.float32)
    theirs.config._attn_implementation = "eager"
    ours, truth = topcoat_losses(base, adapters, policy), peft_losses(theirs)
    assert truth[-1] < truth[0] - 0.5  # they learned, so the losses say something
    assert max(abs(a - b) for a, b in zip(ours, truth, strict=True)) < 1e-4


def test_both_adapters_serve_alike_after_fifty_steps() -> None:
    """Ours and the one that PEFT trained by itself from the same start."""
    base, adapters, theirs = both("llama", torch.float32)
    theirs.config._attn_implementation = "eager"
    topcoat_losses(base, adapters, "none")
    peft_losses(theirs)
    ids = batches()[0][:1]
    with torch.no_grad():
        truth = theirs.eval()(ids).logits[0]
        ours = fuse(base).hidden(attention_inputs(base, ids, torch.arange(LENGTH)[None], [(0, LENGTH)]))
        with theirs.disable_adapter():
            untrained = theirs(ids).logits[0]
    logits = ours @ base.lm_head.weight.T
    assert float((truth - untrained).norm() / untrained.norm()) > 0.1
    assert float((logits - truth).norm() / truth.norm()) < 1e-3


def test_a_shifted_label_fails_it() -> None:
    base, adapters, theirs = both("llama", torch.float32)
    ours, truth = topcoat_losses(base, adapters, "none", shift=2), peft_losses(theirs)
    assert max(abs(a - b) for a, b in zip(ours, truth, strict=True)) > 0.1


def test_fifty_losses_agree_in_bfloat16_within_its_noise() -> None:
    base, adapters, theirs = both("llama", torch.bfloat16)
    exact, exact_adapters, _ = both("llama", torch.float32)
    ours, truth = topcoat_losses(base, adapters, "none"), peft_losses(theirs)
    reference = topcoat_losses(exact, exact_adapters, "none")
    noise = max(abs(a - b) for a, b in zip(truth, reference, strict=True))  # PEFT's own distance from float32
    assert max(abs(a - b) for a, b in zip(ours, reference, strict=True)) < 2 * noise


def test_peft_serves_the_adapter_alike(tmp_path) -> None:
    base, adapters, _ = both("llama", torch.float32)
    plain = tiny_model("llama")
    topcoat_losses(base, adapters, "mlp")
    (tmp_path / "adapter").mkdir()
    save_adapter(adapters, tmp_path / "adapter", "tiny")
    served = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = batches()[0][:1]
    with torch.no_grad():
        truth = served(ids).logits[0]
        fused = fuse(base)
        inputs = attention_inputs(base, ids, torch.arange(LENGTH)[None], [(0, LENGTH)])
        ours = fused.hidden(inputs) @ base.lm_head.weight.T
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
