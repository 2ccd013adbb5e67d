"""A run whose base is rounded by calibration: the integers stand in its folder, and all that follows takes them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from topcoat.errors import TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.conversation import open_chat
from topcoat.runs.folder import RunFolder
from topcoat.runs.listener import Silent
from topcoat.runs.merging import merge_run
from topcoat.runs.run import run

INT3 = {"format": "int3", "rounding": "gptq", "calibration_rows": 6}


def make(tiny_recipe, output, **sections):
    values = tiny_recipe(output, model={"quantization": INT3}, **sections)
    return recipe_from_dict(values, "a test")


def tensors(folder):
    return {f.name: load_file(f) for f in sorted(folder.glob("*.safetensors"))}


def test_a_run_rounds_once_and_resumes_merges_and_chats_on_the_same_integers(tiny_recipe, tmp_path):
    heard = []

    class Ear(Silent):
        def say(self, text):
            heard.append(text)

    recipe = make(tiny_recipe, "run")
    result = run(recipe, listener=Ear())
    folder = RunFolder(result.folder)
    facts = json.loads((folder.rounded / "calibration.json").read_text())
    assert facts["rows"] == 6
    assert facts["mean_error"] < facts["mean_nearest_error"]
    assert len(facts["linears"]) == 14
    assert any("rounded 14 linears on 6 rows" in line for line in heard)
    first = (folder.adapter / "adapter_model.safetensors").read_bytes()

    stamp = {f.name: f.stat().st_mtime_ns for f in folder.rounded.iterdir()}
    again = run(recipe, resume=True)
    assert {f.name: f.stat().st_mtime_ns for f in folder.rounded.iterdir()} == stamp
    assert (again.adapter / "adapter_model.safetensors").read_bytes() == first

    merged, proof = merge_run(result.folder)
    assert proof.as_json()
    assert merged.is_dir()
    open_chat(str(result.folder), lambda text: None)

    same = run(make(tiny_recipe, "other"))
    assert tensors(RunFolder(same.folder).rounded).keys() == tensors(folder.rounded).keys()
    for name, parts in tensors(folder.rounded).items():
        for key, tensor in tensors(RunFolder(same.folder).rounded)[name].items():
            assert (parts[key] == tensor).all(), key

    shutil.rmtree(folder.rounded)
    with pytest.raises(TopcoatError, match="the run's rounded weights are not there"):
        merge_run(result.folder, tmp_path / "elsewhere")


def test_a_start_that_died_after_rounding_begins_anew(tiny_recipe):
    recipe = make(tiny_recipe, "run", train={"max_steps": 1}, evaluate={"metrics": []})
    folder = RunFolder(Path(recipe.output))
    folder.rounded.mkdir(parents=True)
    (folder.rounded / "model.safetensors").write_bytes(b"of another recipe")
    run(recipe)
    assert len(tensors(folder.rounded)["model.safetensors"]) > 14


def test_other_verbs_say_what_to_do(tiny_llama):
    with pytest.raises(TopcoatError, match="rounding gptq needs rows") as caught:
        load_model(ModelSettings(path=str(tiny_llama), quantization=INT3))
    assert "format: stored" in caught.value.problems[0].fix
