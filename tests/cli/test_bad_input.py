"""Files that are wrong, given to `topcoat train` as a user would: the message is read, and nothing is left behind.

What a message says is what is wrong with the value in hand, where, and what to do. Recipes are in test_train.py.
"""

import gzip
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

GOOD = json.dumps({"prompt": "What is a coat?", "completion": "thin"}) + "\n"


@pytest.fixture
def fails(topcoat, tiny_recipe, tmp_path):
    """fails(data=..., model=...): the messages of a run that cannot be; nothing on the disk may have changed."""

    def go(code: int = 2, output: object = "run", **sections) -> str:
        recipe = tiny_recipe(output if isinstance(output, Path) else "run", **sections)
        if not isinstance(recipe["data"].get("validation"), str):
            recipe.pop("evaluate")
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
        done = topcoat("train", str(tmp_path / "recipe.yaml"), "--json")
        after = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
        assert done.code == code, done.err
        assert after == before
        assert "Traceback" not in done.err
        assert "unexpected error" not in done.err
        assert done.json["exit_code"] == code
        assert [problem["what"] for problem in done.json["problems"]]
        return done.err

    return go


@pytest.fixture
def bad_rows(fails, tmp_path):
    """bad_rows(content): what a training file of that content is refused with."""

    def go(content: str | bytes, name: str = "bad.jsonl", code: int = 2, **settings) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return fails(code, data={"train": str(tmp_path / name), "validation": None, **settings})

    return go


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        ("", "bad.jsonl is empty: it has no rows", "write at least one row into it"),
        ("\n\n \n", "bad.jsonl is empty: it has no rows", ""),
        (
            GOOD * 2 + '{"prompt": "a", "compl',
            "bad.jsonl line 3: the JSON ends in the middle (column 17)",
            "complete it",
        ),
        (GOOD + "[1, 2]\n", "bad.jsonl line 2: is a list of 2; expected an object", ""),
        (
            GOOD.encode() + '{"prompt": "é"}'.encode("latin1"),
            "bad.jsonl line 2: is not UTF-8: byte 0xe9",
            "iconv -f LATIN1",
        ),
        (GOOD.encode("utf-16"), "bad.jsonl is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8"),
        (GOOD + '{"prompt": "a"}\n', 'bad.jsonl line 2: "completion" is missing; the row has prompt', ""),
        (GOOD + '{"prompt": "a", "completion": null}\n', 'bad.jsonl line 2: "completion" is null; expected text', ""),
        (GOOD + '{"prompt": 3, "completion": "b"}\n', 'bad.jsonl line 2: "prompt" is a number (3); expected text', ""),
        ('{"foo": "a", "bar": "b"}\n', "the columns foo, bar are of no known format", "rename them with data.columns"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}\n',
            "bad.jsonl line 1: there is no assistant turn (roles: user), so nothing to train on",
            "",
        ),
    ],
    ids=lambda value: None,
)
def test_rows_that_are_wrong(bad_rows, content, what, fix):
    said = bad_rows(content)
    assert what in said
    assert fix in said


def test_all_wrong_rows_are_named(bad_rows):
    said = bad_rows(GOOD + '{"prompt": "a"}\n' + GOOD + '{"prompt": "a", "completion": 1}\n')
    assert "bad.jsonl line 2" in said
    assert "bad.jsonl line 4" in said
    said = bad_rows(GOOD + '{"prompt"\n' + GOOD + "{]\n")
    assert "bad.jsonl line 2" in said
    assert "bad.jsonl line 4" in said


def test_a_compressed_file_that_was_cut_off(bad_rows):
    said = bad_rows(gzip.compress(GOOD.encode() * 100)[:-20], "bad.jsonl.gz")
    assert "bad.jsonl.gz" in said


def test_rows_that_train_nothing(bad_rows):
    long = json.dumps({"prompt": "word " * 200, "completion": "end"}) + "\n"
    said = bad_rows(long, code=1, max_length=64, overlong="truncate")
    assert "0 of 64 tokens are trained: no example has an answer token left (first: bad.jsonl line 1)" in said
    assert "raise data.max_length" in said
    said = bad_rows(long, max_length=64)
    assert "1 of 1 examples exceeds 64 tokens" in said
    assert "set data.overlong: drop, truncate or split" in said


@pytest.mark.parametrize("name", ["a\x1b[31m.jsonl", "a\nfix: rm.jsonl", "a\u202elnosj.jsonl"])
def test_what_steers_a_terminal_in_a_path_is_shown_as_an_escape(topcoat, tmp_path, name):
    path = tmp_path / name
    for content, code in ((None, 2), (b"{", 2), ((GOOD * 60).encode(), 0)):
        if content is not None:
            path.write_bytes(content)
        done = topcoat("data", "check", str(path))
        said = done.out + done.err
        assert done.code == code
        assert name not in said
        assert "\x1b" not in said
        assert repr(name)[1:-1] in said
    assert topcoat("train", str(tmp_path / "a\x1b[2J.yaml")).err.count("a\\x1b[2J.yaml")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def not_finite(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = float("nan")
    write(folder, tensors)


def without_a_shard(folder: Path) -> None:
    tensors = tensors_of(folder)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)}
    for file, inside in shards.items():
        write(folder, {name: tensors[name] for name in inside}, file)
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = tensors_of(folder)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    write(folder, tensors)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    marker = folder.parent / "pwned"
    (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())


@pytest.mark.parametrize(
    ("damage", "what", "fix"),
    [
        (cut, "bytes, found 559,488: the copy is incomplete", "copy or download the file again"),
        (cut_header, "bytes, found 50: the copy is incomplete", "copy or download the file again"),
        (not_finite, "tensor model.layers.0.mlp.down_proj.weight: 1 of 8192 values are not finite", "damaged"),
        (without_a_shard, "missing 1 of 2 weight files: model-00002-of-00002.safetensors", "copy or download"),
        (without_a_tensor, "1 parameters of LlamaForCausalLM are not in the checkpoint: model.layers.0", "incomplete"),
        (
            only_a_pickle,
            "the weights are a pickle (pytorch_model.bin), which can run code",
            "use the safetensors version",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON", ""),
        (lambda f: (f / "tokenizer.json").unlink(), "this model directory has no tokenizer", "copy tokenizer.json"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_models_that_are_wrong(fails, tiny_llama, tmp_path, damage, what, fix):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    damage(folder)
    said = fails(model={"path": str(folder)})
    assert what in said
    assert fix in said
    assert str(folder) in said


def test_a_gguf_with_lying_sizes(fails, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1))
    said = fails(model={"path": str(tmp_path / "bad.gguf")})
    assert "the tensor table claims 1,099,511,627,776 entries, more than the file can hold" in said


def test_a_model_that_is_not_there(fails, tmp_path, tiny_llama):
    said = fails(model={"path": str(tiny_llama) + "x"})
    assert f"model.path is {tiny_llama}x, which is not there" in said
    assert "recipe.yaml line 1" in said
    assert f"did you mean {tiny_llama}?" in said


def test_outputs_that_cannot_be(fails, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert f"output is {tmp_path / 'file'}, which is a file" in fails(output=tmp_path / "file")
    said = fails(output=tmp_path / "file" / "below")
    assert f"the folder {tmp_path / 'file' / 'below'} cannot be made: Not a directory" in said
    said = fails(output=Path("/proc/1/nope"))
    assert "the folder /proc/1/nope cannot be made" in said
    assert "name a folder this user may write to" in said
