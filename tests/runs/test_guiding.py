"""What a run and a plan know for the rules; what a check of the data says as well is said once, and silenced once."""

from __future__ import annotations

import json

import pytest

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import (
    AdaloraConfig,
    DoraConfig,
    IecConfig,
    LoraConfig,
    MissConfig,
    PromptTuningConfig,
    VeraConfig,
)
from topcoat.data.checks.corpus import Corpus, Setting
from topcoat.data.checks.quantity import capacity
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.quant.settings import Nf4Config
from topcoat.recipe.guidance import Facts
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.guiding import facts_of_plan, tell, without_silenced
from topcoat.runs.opening import scale_of
from topcoat.runs.planning import plan

FULL = Facts(trained=1_000, target_tokens=5_000)


@pytest.fixture
def recipe(tiny_recipe):
    """recipe(silence, policy): one that silences those rules, with that policy for the check of the capacity."""

    def make(silence, policy):
        data = {"checks": {"capacity": policy}}
        return recipe_from_dict(tiny_recipe(data=data) | {"guidance": {"silence": silence}})

    return make


@pytest.mark.parametrize(
    ("silence", "policy", "says"),
    [([], "warn", False), ([], "stop", False), ([], "off", True), (["capacity"], "off", False)],
)
def test_the_rule_speaks_where_the_check_of_the_same_name_is_off(recipe, ear, silence, policy, says):
    listener = ear()
    tell(recipe(silence, policy), FULL, listener)
    assert ("the data has about 5k target tokens" in listener.text) == says


@pytest.mark.parametrize(
    ("silence", "policy", "targets", "says"),
    [
        ([], "warn", 5_000, True),
        (["capacity"], "warn", 5_000, False),
        (["capacity"], "stop", 5_000, True),  # a stop was asked for by name
        (["epochs"], "warn", 5_000, True),
        (["capacity"], "warn", 0, True),  # too few tokens are another finding
    ],
)
def test_a_silenced_rule_is_not_said_by_the_check_either(recipe, silence, policy, targets, says):
    setting = Setting(target_tokens=targets, adapter_parameters=1_000, adapter_rank=4)
    heard = without_silenced(recipe(silence, policy), setting)
    assert bool(capacity(Corpus("t.jsonl", setting=heard))) == says
    assert (heard.target_tokens, heard.adapter_rank) == (targets, 4)
    assert setting.adapter_parameters == 1_000


def test_a_run_knows_in_how_many_bits_a_stored_checkpoint_lies(tiny_recipe, tiny_llama, train, ear, tmp_path):
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", Nf4Config())
    values = tiny_recipe(train={"max_steps": 1}, evaluate={"every": 1, "samples": 0})
    for stored, says in ((tmp_path / "q", True), (tiny_llama, False)):
        listener = ear()
        model = values["model"] | {"path": str(stored), "quantization": "stored"}
        train(values | {"model": model, "output": str(tmp_path / f"run-{says}")}, listener=listener)
        assert ("model.quantization.format stored (4." in listener.text) == says


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        (["model.quantization=nf4"], 4.127),
        (["model.quantization=int8"], 8.05),
        ([], 16),
        (["adapter.method=full"], None),
    ],
)
def test_a_plan_knows_the_bits_of_a_frozen_weight(overrides, bits):
    made = plan("smollm2-135m", overrides, device="l4")
    assert facts_of_plan(made.estimate).weight_bits == pytest.approx(bits, abs=0.01)


SCALES = {
    "lora": (LoraConfig(r=4, lora_alpha=8), "2 = lora_alpha 8 / r 4"),
    "rslora": (LoraConfig(r=16, lora_alpha=32, use_rslora=True), "8 = lora_alpha 32 / sqrt(r 16)"),
    "dora": (DoraConfig(r=3, lora_alpha=1), "0.3333 = lora_alpha 1 / r 3"),
    "iec": (IecConfig(r=4, lora_alpha=2), "0.5 = lora_alpha 2 / r 4"),
    "adalora": (AdaloraConfig(init_r=6, target_r=3, lora_alpha=12), "2 = lora_alpha 12 / init_r 6"),
    "patterns": (
        LoraConfig(r=4, lora_alpha=8, rank_pattern={"q_proj": 8}, alpha_pattern={"v_proj": 32}),
        "1 to 8 by linear, from lora_alpha and r of each",
    ),
    "same": (
        LoraConfig(r=4, lora_alpha=8, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 16}),
        "2 = lora_alpha 8 / r 4",
    ),
    "miss": (MissConfig(r=8), None),
    "vera": (VeraConfig(r=8), None),
    "tokens": (PromptTuningConfig(num_virtual_tokens=3), None),
}


@pytest.mark.parametrize(("config", "said"), SCALES.values(), ids=SCALES.keys())
def test_the_scale_is_told_with_what_it_is_made_of(tiny_llama, config, said):
    model = load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32", device="cpu")).model
    assert scale_of(attach(model, config)) == said


@pytest.mark.parametrize(
    ("adapter", "line"),
    [({"method": "lora", "r": 4, "lora_alpha": 10}, "scale 2.5 = lora_alpha 10 / r 4"), ({"method": "ia3"}, None)],
)
def test_the_table_of_a_run_states_the_scale_where_there_is_one(tiny_recipe, topcoat, tmp_path, adapter, line):
    recipe = tiny_recipe(train={"max_steps": 1}, evaluate={"every": 1, "samples": 0}) | {"adapter": adapter}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    done = topcoat("train", str(tmp_path / "r.yaml"))
    assert done.code == 0, done.err
    lines = [" ".join(text.split()) for text in (done.out + done.err).splitlines()]
    assert [text for text in lines if text.split()[:1] == ["scale"]] == ([line] if line else [])
