"""topcoat quantize: checkpoints others can read, and options that are wrong."""

import json

import pytest
import torch


@pytest.mark.parametrize(
    ("format", "bits"),
    [("nf4", 4.127), ("int8", 8), ("bf16", 16), ("fp32", 32), ("int4", 5), ("gptq+group_size=32", 4.75)],
)
def test_it_writes_the_format(topcoat, tiny_llama, tmp_path, format, bits):
    done = topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q"), "--format", format, "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert done.json["out"] == str(tmp_path / "q")
    assert done.json["format"] == format.split("+")[0]
    assert done.json["linears"] == 14
    assert done.json["bits_per_weight"] == pytest.approx(bits, rel=0.06)  # tiny linears: the scales weigh more
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert ("quantization_config" in config) == (format not in ("bf16", "fp32"))
    assert (tmp_path / "q" / "tokenizer.json").is_file()


def test_transformers_reads_it(topcoat, tiny_llama, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    assert topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q")).code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        (("--format", "nf5"), "'nf5' is no format this version writes", "did you mean nf4"),
        (("--format", "gold"), "'gold' is no format this version writes", "--format is one of nf4, fp4, nf3"),
        (
            ("--block-size", "48"),
            "the format nf4 sets block_size to 48, and nf4 takes 32, 64",
            "block_size, double_quant",
        ),
        (
            ("--format", "int8", "--block-size", "64"),
            "nf2-icq, and --format is int8",
            "leave it out",
        ),
        (("--format", "bf16", "--no-double-quant"), "--double-quant belongs to nf4, fp4", "leave it out"),
        (("--block-size", "many"), "Invalid value for '--block-size'", "topcoat quantize --help"),
    ],
)
def test_wrong_options(topcoat, tiny_llama, tmp_path, options, what, fix):
    done = topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q"), *options)
    assert done.code == 2
    assert what in done.err
    assert fix in done.err
    assert not (tmp_path / "q").exists()


def test_what_is_there_stays(topcoat, tiny_llama, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "file").write_text("mine")
    done = topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q"))
    assert done.code == 2
    assert "q exists already" in done.err
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_model_that_is_not_there(topcoat, tmp_path):
    done = topcoat("quantize", str(tmp_path / "none"), "--out", str(tmp_path / "q"))
    assert done.code == 2
    assert "none is not there; expected" in done.err
    assert not (tmp_path / "q").exists()


def test_settings_and_overrides_are_written_and_load_again(topcoat, tiny_llama, tmp_path):
    from topcoat.model.load import load_model
    from topcoat.model.settings import ModelSettings
    from topcoat.quant.settings import StoredConfig

    options = (
        "--format",
        "int3+group_size=16+rounding=hqq",
        "--override",
        "down_proj=int8",
        "--override",
        "lm_head=nf4",
    )
    done = topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q"), *options)
    assert done.code == 0, done.err
    assert "Topcoat layout" in done.out
    model = load_model(ModelSettings(path=str(tmp_path / "q"), quantization=StoredConfig(), device="cpu")).model
    block = model.model.layers[0]
    formats = [m.weight_state.format for m in (block.mlp.up_proj, block.mlp.down_proj, model.lm_head)]
    assert formats == ["int3", "int8", "nf4"]
    assert block.mlp.up_proj.weight_state.scalars["group_size"] == 16


@pytest.mark.parametrize("source", ["rows", "recipe"])
def test_it_calibrates_on_rows_and_on_a_recipes_rows(topcoat, tiny_llama, tiny_recipe, tiny_rows, tmp_path, source):
    from topcoat.recipe.load import dump_recipe, recipe_from_dict

    named = tiny_rows["train"]
    if source == "recipe":
        named = str(tmp_path / "recipe.yaml")
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_from_dict(tiny_recipe(), "a test")))
    out = str(tmp_path / "q")
    done = topcoat("quantize", str(tiny_llama), "--out", out, "--format", "int3", "--calibrate", named, "--json")
    assert done.code == 0, done.err
    errors = done.json["errors"].values()
    assert len(errors) == 14
    assert sum(e["error"] for e in errors) < sum(e["nearest_error"] for e in errors)
    again = topcoat("quantize", str(tiny_llama), "--out", out, "--format", "int3", "--calibrate", named)
    assert again.code == 2
    assert "q exists already" in again.err


def test_a_report_measures_each_format_beside_the_model_as_stored(topcoat, tiny_llama, tiny_rows, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Every weight is frozen and only the small matrices learn. " * 30)
    options = ("--format", "nf4,int2,int4", "--calibrate", tiny_rows["train"], "--text", str(text), "--tokens", "200")
    out = tmp_path / "report"
    done = topcoat("quantize", str(tiny_llama), "--report", "--out", str(out), *options, "--json")
    assert done.code == 0, done.err
    found = json.loads((out / "report.json").read_text())["formats"]
    assert [one["name"] for one in found] == ["as stored", "nf4", "int2", "int4"]
    assert found[2]["settings"]["rounding"] == "gptq"
    bits = [one["bits_per_weight"] for one in found]
    assert bits[0] == 32
    assert bits[2:] == [3, 5]
    errors = [one["mean_error"] for one in found]
    assert errors[0] == 0
    assert errors[3] < errors[2]
    assert all(one["tokens"] == 199 for one in found)
    assert found[3]["errors"].keys() == found[1]["errors"].keys()
    assert done.json["formats"] == found
    page = (out / "report.html").read_text()
    assert "int4" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_perplexity_is_that_of_a_plain_loop(topcoat, tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = tmp_path / "text.txt"
    text.write_text("The user asks a question; the assistant answers it. " * 8)
    done = topcoat(
        "quantize",
        str(tiny_llama),
        "--report",
        "--format",
        "fp32",
        "--out",
        str(tmp_path / "r"),
        "--text",
        str(text),
        "--json",
    )
    ids = AutoTokenizer.from_pretrained(tiny_llama)(text.read_text(), add_special_tokens=False)["input_ids"]
    assert len(ids) < 512
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([ids])
        wanted = model(ids, labels=ids).loss.exp().item()
    found = [one["perplexity"] for one in done.json["formats"]]
    assert found == pytest.approx([wanted, wanted], rel=0.02)  # computed in bf16 where the machine has it


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        (("--report",), "--report measures perplexity, and no text is named", "add --text FILE"),
        (("--report", "--text", "none.txt"), "none.txt is not there", "name a .txt or a file of rows"),
        (("--text", "some.txt"), "--text belongs to --report", "leave --text out"),
        (("--format", "int4+rounding=gptq"), "rounding gptq needs rows", "add --calibrate ROWS"),
        (("--calibrate", "rows.jsonl"), "--calibrate belongs to int2, int3, int4 and gptq", "--format int4"),
        (("--format", "int4", "--calibrate", "none.jsonl"), "none.jsonl is not there", "a file of rows, or a recipe"),
        (
            ("--format", "int4+group_size=48"),
            "sets group_size to 48, and int4 takes 16, 32, 64",
            "settings of int4: group_size",
        ),
        (
            ("--format", "int8+double_quant=true"),
            "sets double_quant, and int8 has no such setting",
            "settings of int8: none",
        ),
        (("--format", "int4+group_size"), "'group_size' is no setting", "key=value"),
        (("--override", "lm_head"), "'lm_head' is no override", "PATTERN=FORMAT"),
        (("--override", "nothing=int8"), "overrides matched no linear layer: ['nothing']", "down_proj"),
        (("--format", "int4+group_size=256"), "group_size 256 does not divide rows of 64 weights", "a group_size of"),
    ],
)
def test_options_that_do_not_fit_are_refused(topcoat, tiny_llama, tmp_path, options, what, fix):
    done = topcoat("quantize", str(tiny_llama), "--out", str(tmp_path / "q"), *options)
    assert done.code == 2
    assert what in done.err
    assert fix in done.err
    assert not (tmp_path / "q").exists()


def test_a_report_on_a_format_that_does_not_fit_stops_before_it_measures(topcoat, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The user asks a question; the assistant answers it. " * 8)
    options = ("--format", "nf4,gptq+group_size=256", "--text", str(text), "--out", str(tmp_path / "r"))
    done = topcoat("quantize", str(tiny_llama), "--report", *options)
    assert done.code == 2
    assert "group_size 256 does not divide rows of 64 weights" in done.err
    assert "measuring" not in done.out
    assert not (tmp_path / "r").exists()
