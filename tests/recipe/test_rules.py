"""Warnings: said, and done as asked."""

import pytest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter: {r: 4, lora_alpha: 33}", "adapter.lora_alpha 33 / r 4 = 8.25 is outside 0.25 to 8"),
        ("adapter: {r: 64, lora_alpha: 15}", "adapter.lora_alpha 15 / r 64 = 0.234 is outside 0.25 to 8"),
        ("adapter: {r: 128, lora_alpha: 128}", "adapter.r is 128: above 64"),
        ("adapter: {target_modules: [q_proj, v_proj]}", "adapter.target_modules has attention layers only"),
        ("lr: 0.01", "train.learning_rate is 0.01: LoRA usually takes 1e-5 to 5e-3"),
        ("lr: 1e-3\nadapter: full", "train.learning_rate is 0.001: full tuning usually takes 1e-5 to 2e-5"),
        ("num_epochs: 10", "train.epochs is 10: beyond 3"),
        ("batch_size: 256", "train.batch_size is 256: LoRA learns less"),
        ("adapter: qlora\nfp16: true", "model.compute_dtype fp16 on nf4 weights is unstable"),
    ],
)
def test_doubtful_settings_are_warned_of_and_done(load, text, said):
    _, notes = load(text)
    assert [note for note in notes if note.startswith(f"warning: {said}")]


def test_usual_settings_are_not_warned_of(load):
    text = "adapter: {r: 64, lora_alpha: 16}\ntrain: {epochs: 3, learning_rate: 2e-4, batch_size: 128}\n"
    assert load(text)[1] == []
    assert load("adapter: {r: 256, lora_alpha: 16, use_rslora: true}")[1] == []
