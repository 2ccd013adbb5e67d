"""topcoat chat, scripted through stdin: answers, streaming, commands, and what it is pointed at."""

import io
import json
import shutil
from pathlib import Path

import pytest

from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.runs.conversation import Chat, Sampling, open_chat


@pytest.fixture
def chat(topcoat, monkeypatch):
    """chat(what, "line", "line"): types the lines and ends; what was left."""

    def talk(what: object, *lines: str, options: tuple[str, ...] = ()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return topcoat("chat", str(what), *options)

    return talk


def answers(done) -> list[str]:
    """The lines after the base is loaded."""
    lines = done.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("loading", "process:")))
    return [line for line in lines[start:] if not line.startswith(("loading", "process:"))]


def test_a_run_answers_as_it_was_taught(chat, finished, tiny_rows):
    row = json.loads(Path(tiny_rows["train"]).read_text().splitlines()[0])
    done = chat(finished(), row["prompt"], "/reset", row["prompt"], "/exit", row["prompt"])
    assert done.code == 0, done.err
    assert answers(done) == [row["completion"].strip(), "forgotten", row["completion"].strip()]


def test_the_adapter_can_be_switched_off_and_on(chat, finished, tiny_llama, tiny_rows):
    row = json.loads(Path(tiny_rows["train"]).read_text().splitlines()[0])
    few = ("--max-new-tokens", "12")
    lines = ("/adapter off", row["prompt"], "/adapter on", "/reset", row["prompt"])  # it reads what the base said
    with_run = answers(chat(finished(), *lines, options=few))
    alone = answers(chat(tiny_llama, row["prompt"], options=few))
    assert with_run[0] == "the base answers"
    assert "\n".join(with_run[1:]).startswith("\n".join(alone) + "\nthe adapter answers, and reads ")
    assert with_run[-2] == "forgotten"
    assert with_run[-1] == row["completion"].strip()


def test_its_commands(chat, tiny_llama):
    done = chat(
        tiny_llama, "/help", "/adapter off", "/adapter", "/nonesuch x", "/system be brief", "/system", "", "/quit"
    )
    assert done.code == 0
    said = answers(done)
    assert said[0].startswith("/adapter off   answer with the base alone")
    assert "there is no adapter: this is a model as it is" in said
    assert "'/adapter' is no command; /help lists them" in said
    assert "'/nonesuch x' is no command; /help lists them" in said
    assert said[-2:] == ["system message set", "system message removed"]


def test_the_system_message_and_the_turns_so_far_are_part_of_the_prompt(tiny_llama):
    chat = Chat(load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32")), None)
    seen = []
    render = chat.renderer.prompt_ids
    chat.renderer.prompt_ids = lambda messages: seen.append(list(messages)) or render(messages)
    chat.start("be brief")
    first = chat.answer("one", lambda piece: None, Sampling(max_new_tokens=3))
    chat.answer("two", lambda piece: None, Sampling(max_new_tokens=3))
    chat.start(chat.system)
    chat.answer("three", lambda piece: None, Sampling(max_new_tokens=3))
    system = {"role": "system", "content": "be brief"}
    assert seen[1] == [
        system,
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert seen[2] == [system, {"role": "user", "content": "three"}]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_streams_is_what_is_answered(tiny_llama, temperature):
    """A random model speaks broken UTF-8: pieces wait until their characters are whole."""
    chat = Chat(load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32")), None)
    for text in ("Où est la gare?", "γάμμα 🙂", "naïve", "x"):
        pieces: list[str] = []
        said = chat.answer(text, pieces.append, Sampling(max_new_tokens=40, temperature=temperature))
        assert "".join(pieces) == said
        assert len(pieces) > 5
        chat.start(None)


def test_unicode_is_learned_and_spoken(finished, tiny_rows, tmp_path, topcoat, tiny_recipe):
    text = "naïve 🙂 日本語"
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "Sag es.", "completion": text}) + "\n")
    recipe = tiny_recipe(train={"max_steps": 40, "learning_rate": 1e-2}, evaluate={"every": 40})
    recipe["data"] = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert topcoat("train", str(tmp_path / "r.yaml")).code == 0
    chat = open_chat(str(tmp_path / "run"), lambda said: None)
    pieces: list[str] = []
    assert chat.answer("Sag es.", pieces.append) == text
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_seed_repeats_a_sampled_answer(chat, tiny_llama):
    options = ("--temperature", "1.0", "--max-new-tokens", "12")
    one, same = (chat(tiny_llama, "hello", options=(*options, "--seed", "1")).out for _ in range(2))
    other = chat(tiny_llama, "hello", options=(*options, "--seed", "2")).out
    assert one == same != other


def test_a_fully_trained_run_talks(chat, finished, tiny_rows):
    run = finished("full")
    row = json.loads(Path(tiny_rows["train"]).read_text().splitlines()[0])
    done = chat(run, row["prompt"], "/adapter off")
    assert answers(done) == [row["completion"].strip(), "there is no adapter: this is a model as it is"]


def test_a_conversation_that_fills_the_context_is_told_and_goes_on(chat, finished, tiny_rows):
    row = json.loads(Path(tiny_rows["train"]).read_text().splitlines()[0])
    done = chat(finished(), "word " * 600, row["prompt"])
    assert done.code == 0
    assert "the model takes 1 to 511" in done.err
    assert "/reset forgets the conversation and starts anew" in done.out
    assert answers(done)[-1] == row["completion"].strip()


def test_another_base_is_refused(chat, finished, tmp_path, tiny_llama):
    from topcoat.model.tiny import save_tiny

    run = finished()
    other = save_tiny(tmp_path / "other", "llama", seed=3)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny_llama), str(other)))
    done = chat(run, "hello")
    assert done.code == 1
    assert "the adapter was trained with another base model" in done.err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_has_not_finished(chat, finished, method):
    run = finished(method)
    shutil.rmtree(run / ("adapter" if method == "lora" else "model"))
    done = chat(run, "hello")
    assert done.code == 2
    assert "the run has not finished" in done.err
    assert f"topcoat train {run / 'recipe.yaml'} --resume" in done.err


def test_a_path_that_is_neither(chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for wrong in ("runs/demoo", "./nothing", "/nowhere/model", "model.gguf"):
        done = chat(wrong, "hello")
        assert done.code == 2
        assert f"{wrong} is not there; expected a run folder, a model directory or a .gguf file" in done.err
    done = chat("runs/demoo", "hello")
    assert "did you mean runs/demo?" in done.err
    done = chat("runs/demo", "hello")
    assert done.code == 2
    assert "config.json" in done.err
    assert "unexpected" not in done.err
