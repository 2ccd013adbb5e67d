"""topcoat in Python: the verbs as functions, silent, with the same errors."""

import os
import subprocess
import sys

import pytest
import torch

import topcoat


def test_importing_it_imports_nothing_heavy():
    code = "import sys, topcoat; assert not {'torch', 'pydantic', 'rich'} & set(sys.modules); topcoat.LoraConfig; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_every_public_name_is_there():
    for name in topcoat.__all__:
        assert getattr(topcoat, name) is not None
    with pytest.raises(AttributeError, match="topcoat has no 'trian'"):
        _ = topcoat.trian


def test_a_recipe_may_be_a_dict_a_file_or_typed_objects(tiny_recipe, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("topcoat.runs.finish.write_report", lambda folder: None)
    as_dict = tiny_recipe("dict")
    file = tmp_path / "recipe.yaml"
    file.write_text(repr(tiny_recipe("file")).replace("'", '"'))
    typed = topcoat.Recipe(
        model=topcoat.ModelSettings(path=as_dict["model"]["path"], compute_dtype="fp32"),
        adapter=topcoat.LoraConfig(r=4),
        data=topcoat.DataSettings(**as_dict["data"]),
        train=topcoat.TrainSettings(max_steps=8, batch_size=3, learning_rate=3e-3),
        evaluate=topcoat.EvaluateSettings(every=4, max_new_tokens=6, samples=2),
        output=str(tmp_path / "typed"),
    )
    results = [topcoat.train(recipe) for recipe in (as_dict, str(file), typed)]
    weights = [(result.adapter / "adapter_model.safetensors").read_bytes() for result in results]
    assert weights[0] == weights[1] == weights[2]
    assert results[0].tuned == results[2].tuned
    assert results[0].steps == 8
    out, _ = capfd.readouterr()
    assert out == ""  # a library does not print


def test_advice_is_the_decision_with_its_facts():
    told = topcoat.Told(task=frozenset({"task"}), prompted="short", rows=500, model="smollm2-135m", device="l4")
    advised = topcoat.advise(told)
    assert (advised.tunes, advised.method) == (True, "lora")
    assert advised.facts["lora_fits"] == "yes"


def test_errors_are_raised_and_not_printed(tiny_recipe, capfd):
    with pytest.raises(topcoat.TopcoatError) as caught:
        topcoat.train(tiny_recipe(train={"learning_rte": 1, "max_steps": 0}))
    assert len(caught.value.problems) == 2
    with pytest.raises(topcoat.TopcoatError, match="no such file or directory"):
        topcoat.load("./nowhere")
    with pytest.raises(topcoat.TopcoatError, match="is no run folder"):
        topcoat.merge("./nowhere")
    with pytest.raises(topcoat.TopcoatError, match="'learning_rat' is nothing to search over"):
        topcoat.tune(tiny_recipe(), "learning_rat", "5s")
    assert capfd.readouterr() == ("", "")


def test_load_attach_and_an_own_loop(tiny_llama):
    base = topcoat.load(topcoat.ModelSettings(path=str(tiny_llama), compute_dtype="fp32"))
    assert isinstance(base, topcoat.Base)
    ids = torch.tensor([base.tokenizer("a thin coat")["input_ids"]])
    before = base.model(ids).logits.detach()
    adapters = topcoat.attach(base.model, topcoat.LoraConfig(r=2))
    assert isinstance(adapters, topcoat.Adapters)
    assert torch.equal(base.model(ids).logits, before)
    optimizer = torch.optim.AdamW(adapters.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = base.model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with adapters.off():
        assert torch.equal(base.model(ids).logits, before)


def test_a_saved_adapter_is_loaded_again(tiny_llama, tmp_path):
    base = topcoat.load(tiny_llama)
    adapters = topcoat.attach(base.model, topcoat.LoraConfig(r=2))
    for parameter in adapters.parameters().values():
        torch.nn.init.normal_(parameter)
    saved = {name: parameter.detach().clone() for name, parameter in adapters.parameters().items()}
    topcoat.save_adapter(adapters, tmp_path, str(tiny_llama), base.identity.model_dump())
    adapters.detach()
    again = topcoat.load_adapter(base.model, tmp_path, base.identity.model_dump())
    assert all(torch.equal(saved[name], parameter) for name, parameter in again.parameters().items())


def test_merge_returns_the_folder_and_the_proof(tiny_recipe, tmp_path):
    result = topcoat.train(tiny_recipe())
    out, proof = topcoat.merge(result.folder)
    assert out == result.folder / "merged"
    assert proof.holds
    again, _ = topcoat.merge(str(result.folder), str(tmp_path / "elsewhere"))
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    with pytest.raises(topcoat.TopcoatError, match="exists already"):
        topcoat.merge(result.folder)


def test_a_listener_hears_what_happens(tiny_recipe):
    heard: list[str] = []

    class Ear:
        def say(self, text):
            heard.append(text)

        def show(self, renderable):
            heard.append(type(renderable).__name__)

        def progress(self, label, total):
            from contextlib import nullcontext

            heard.append(f"{label} {total}")
            return nullcontext(lambda done, figures: None)

    topcoat.train(tiny_recipe(), listener=Ear())
    assert "training 8" in heard
    assert heard[0] == "Table"
    assert any(text.startswith("saved ") for text in heard)


def test_resume_in_python(tiny_recipe):
    result = topcoat.train(tiny_recipe())
    weights = (result.adapter / "adapter_model.safetensors").read_bytes()
    assert (topcoat.train(tiny_recipe(), resume=True).adapter / "adapter_model.safetensors").read_bytes() == weights
    with pytest.raises(topcoat.TopcoatError, match="holds another run"):
        topcoat.train(tiny_recipe())
