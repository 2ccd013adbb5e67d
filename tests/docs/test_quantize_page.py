"""The commands of the page on quantizing, run as they are written; its figures of bits, counted."""

import json
import re
from pathlib import Path

import pytest

from topcoat.cli.main import run
from topcoat.demo.tickets import tickets
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.settings import GptqConfig
from topcoat.quant.sizes import weight_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "quantize.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which every command of the page was run."""
    folder = tmp_path_factory.mktemp("page")
    rows = tickets(train=24, held_out=4).train
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "text.txt").write_text("A thin coat is laid over a finished model. " * 20)
    save_tiny(folder / "SmolLM2-135M-Instruct", "qwen2")
    lines = [line.removeprefix("$ topcoat ").split() for line in PAGE.splitlines() if line.startswith("$ topcoat ")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in lines:
            assert run(words) == 0, words
    return folder


@pytest.mark.parametrize("name", ["SmolLM2-135M-nf4", "SmolLM2-135M-gptq", "mixed"])
def test_what_the_page_writes_loads_as_stored(ran, name):
    model = load_model(ModelSettings(path=str(ran / name), quantization={"format": "stored"}, device="cpu")).model
    formats = {"SmolLM2-135M-nf4": "nf4", "SmolLM2-135M-gptq": "gptq", "mixed": "int4"}
    assert model.model.layers[0].mlp.up_proj.weight_state.format == formats[name]


def test_the_report_of_the_page_has_its_formats(ran):
    found = json.loads((ran / "formats" / "report.json").read_text())["formats"]
    assert [one["name"] for one in found] == ["as stored", "nf4", "int4", "int3+rounding=hqq", "int3"]
    assert [one["settings"]["rounding"] for one in found[2:]] == ["gptq", "hqq", "gptq"]


def test_the_bits_of_the_table_are_those_that_are_stored():
    row = next(line for line in PAGE.splitlines() if line.startswith("| `gptq` | integers"))
    said = [float(number) for number in re.findall(r"\d+\.\d+", row.split("|")[3])]
    counted = [8 * sum(weight_bytes(GptqConfig(bits=bits), 1024, 1024)) / 1024**2 for bits in (2, 3, 4, 8)]
    assert said == [round(bits, 2) for bits in counted]
