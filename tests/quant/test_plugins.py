"""A number format of another package: the example is installed with pip and trained, and what can go wrong is named."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from topcoat.errors import TopcoatError
from topcoat.quant import plugins
from topcoat.quant.formats import make_format
from topcoat.quant.settings import PluginConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "topcoat-ternary"
TRAIN = """
import sys, torch
from pathlib import Path
from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import read_config

quantization = {"format": "plugin", "name": "ternary", "settings": {"threshold": 0.5}}
path = save_tiny(sys.argv[1])
base = load_model(ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu"))
linear = base.model.model.layers[0].mlp.down_proj
before = linear.weight_state.tensors["codes"].clone()
assert set(before.unique().tolist()) == {-1, 0, 1}, before
adapters = attach(base.model, LoraConfig(r=4))
optimizer = torch.optim.Adam(list(adapters.parameters().values()), lr=1e-2)
ids, losses = torch.arange(3, 40)[None], []
for _ in range(5):
    loss = base.model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert torch.equal(linear.weight_state.tensors["codes"], before)

report = quantize_checkpoint(DirectorySource(path), Path(sys.argv[1] + "-stored"), read_config(quantization))
assert report["layout"] == "Topcoat" and report["bits_per_weight"] > 8, report
as_it_lies = {"quantization": {"format": "stored"}, "compute_dtype": "fp32", "device": "cpu"}
again = load_model(ModelSettings(path=sys.argv[1] + "-stored", **as_it_lies))
state = again.model.model.layers[0].mlp.down_proj.weight_state
assert state.format == "ternary" and torch.equal(state.tensors["codes"], before)
print("trained")
"""


def test_the_example_package_is_installed_trained_and_written(tmp_path):
    target = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*pip, "--target", str(target), str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=False
    )
    if "hatchling" in built.stderr and "No module named" in built.stderr:
        pytest.skip("hatchling, which builds the example, is not installed")
    assert built.returncode == 0, built.stderr
    paths = os.pathsep.join([str(target), str(Path(plugins.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-c", TRAIN, str(tmp_path / "model")]
    done = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("trained")


@pytest.fixture
def registered(monkeypatch):
    """Pretends that these entry points are installed."""

    def register(*values):
        entries = [EntryPoint("mine", value, plugins.GROUP) for value in values]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)

    return register


def message(config):
    with pytest.raises(TopcoatError) as caught:
        make_format(config)
    return str(caught.value)


def test_a_format_that_no_package_has_is_refused_with_those_there_are(registered):
    registered("topcoat.quant.int8:Int8")
    said = message(PluginConfig(name="yours"))
    assert "no installed package registers the number format 'yours'" in said
    assert "registered under topcoat.formats: mine" in said


def test_a_plugin_without_a_name_is_asked_for_one(registered):
    registered("topcoat.quant.int8:Int8")
    said = message(PluginConfig())
    assert "nothing says which" in said
    assert "topcoat.formats: mine" in said


def test_a_package_that_does_not_import_is_named(registered):
    registered("no_such_package:Format")
    assert "no_such_package registers the number format 'mine', which cannot be loaded" in message(
        PluginConfig(name="mine")
    )


def test_what_is_no_format_is_named(registered):
    registered("topcoat.units:show_bytes")
    assert "topcoat.units registers topcoat.units:show_bytes as a number format, and it is no subclass" in message(
        PluginConfig(name="mine")
    )


def test_two_packages_with_one_name_are_both_named(registered):
    registered("topcoat.quant.int8:Int8", "topcoat.quant.normal_float:Nf4")
    assert "topcoat.quant.int8 and topcoat.quant.normal_float both register the number format 'mine'" in message(
        PluginConfig(name="mine")
    )


def test_settings_it_does_not_have_are_refused_with_those_it_has(registered):
    registered("topcoat.quant.normal_float:Nf4")
    said = message(PluginConfig(name="mine", settings={"blocksize": 64}))
    assert "does not take these settings for 'mine': blocksize: Extra inputs" in said
    assert "its settings are block_size, double_quant" in said


def test_a_registered_format_is_made_with_its_settings(registered):
    registered("topcoat.quant.normal_float:Nf4")
    format = make_format(PluginConfig(name="mine", settings={"block_size": 32}))
    assert format.config.block_size == 32
    assert format.quantize(torch.ones(1, 64)).tensors["absmax"].numel() == 2
