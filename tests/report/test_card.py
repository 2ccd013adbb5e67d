"""The model card: front matter that a YAML reader reads back, figures, and text that cannot break out of its place."""

import json

import pytest
from ruamel.yaml import YAML

from topcoat.report.card import model_card

RUN = {
    "name": "tickets",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "license": "apache-2.0",
    "method": "lora",
    "recipe": {
        "model": {"path": "x", "quantization": {"format": "nf4", "double_quant": True}},
        "adapter": {"method": "lora", "r": 16, "lora_alpha": 32.0, "target_modules": "all-linear"},
        "train": {"epochs": 1.0, "learning_rate": 0.001, "batch_size": 16},
        "seed": 42,
    },
    "results": {
        "rows": 120,
        "base": {"perplexity": 21.31, "exact_match": 0.0},
        "adapter": {"perplexity": 1.0431, "exact_match": 113 / 120},
        "train_seconds": 260.0,
        "samples": [{"prompt": "```\n# not a title", "reference": "x", "base": "b", "adapter": "x"}],
        "data": {"train_rows": 1600, "dropped": 0},
    },
    "receipt": {"base": {"sha256": "9d" * 32}},
}


def front_matter(card):
    assert card.startswith("---\n")
    return YAML(typ="safe").load(card.split("---\n")[1])


def test_the_front_matter_is_what_model_hubs_read():
    assert front_matter(model_card(RUN)) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["lora", "topcoat"],
    }


@pytest.mark.parametrize("name", ['a: "b" # c', "- x", "it's ---", "C:\\models\\x", "modèle", "./x/y", "/x/y.gguf"])
def test_a_path_stays_out_of_the_front_matter_and_breaks_nothing(name):
    card = model_card(RUN | {"base_model": name})
    assert "base_model" not in front_matter(card)
    assert name in card


def test_the_figures_are_on_the_card():
    card = model_card(RUN)
    for figure in (
        "| exact match (95 % interval) | 0.0 % (0.0 to 3.1 %) | 94.2 % (88.4 to 97.1 %) |",
        "| perplexity | 21.31 | 1.043 |",
        "The adapter answers 113 of 120 held-out rows exactly, the base answers 0.",
        "| train rows | 1,600 |",
        "| r | 16 |",
        "| learning rate | 0.001 |",
        "| quantization · format | nf4 |",
        "| training | 4m 20s |",
        "9d9d",
        'PeftModel.from_pretrained(base, "path/to/this/folder")',
    ):
        assert figure in card, figure


def test_a_sample_cannot_close_its_own_fence():
    card = model_card(RUN)
    assert "````text\n```\n# not a title\n````" in card


def test_a_cell_cannot_add_a_column_or_html():
    card = model_card(RUN | {"receipt": {"a|b": "<img src=x>\n| c |"}})
    assert "| a\\|b | \\<img src=x\\> \\| c \\| |" in card


def test_a_card_needs_only_a_name_and_a_base():
    card = model_card({"name": "x", "base_model": "o/y"})
    assert front_matter(card)["base_model"] == "o/y"
    assert "## Scores" not in card
    assert "None" not in card


def test_a_fully_tuned_model_gets_no_adapter_code():
    card = model_card(RUN | {"method": "full"})
    assert "PeftModel" not in card
    assert "A full fine-tuning of" in card
    assert front_matter(card)["library_name"] == "transformers"


def test_only_what_was_measured_is_in_the_table():
    results = {"rows": 20, "adapter": {"perplexity": 4.0}}
    card = model_card(RUN | {"results": results})
    assert "| perplexity | not measured | 4 |" in card
    assert "exact match" not in card
    assert json.dumps(results) not in card
