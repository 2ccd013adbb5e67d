"""The table of known models against published numbers of parameters, and names as people write them."""

from __future__ import annotations

import pytest

from topcoat.errors import TopcoatError
from topcoat.planning.shapes import SHAPES, find_shape, known_model, unknown_model

PUBLISHED = {  # parameters of the safetensors files, as the hub shows them; a tied head counted once
    "llama-2-7b-hf": 6_738_415_616,
    "llama-2-13b-hf": 13_015_864_320,
    "llama-2-70b-hf": 68_976_648_192,
    "meta-llama-3-8b": 8_030_261_248,
    "meta-llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b-instruct": 70_553_706_496,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-small-24b-base-2501": 23_572_403_200,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "mixtral-8x22b-v0.1": 140_620_634_112,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-4b-it": 3_880_263_168,
    "gemma-3-12b-it": 11_766_034_176,
    "gemma-3-27b-it": 27_009_346_304,
    "phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-3.5-mini-instruct": 3_821_079_552,
    "phi-3-medium-4k-instruct": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini-instruct": 3_836_021_760,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}


def test_every_row_has_the_published_number_of_parameters():
    assert {shape.name: known_model(shape.repository).parameters for shape in SHAPES} == PUBLISHED


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3-8b", "meta-llama-3-8b"),
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "llama-3.2-1b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b-hf"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("SmolLM2-135M-Instruct", "smollm2-135m"),
    ],
)
def test_a_copy_or_a_variant_means_the_same_shapes(typed, meant):
    shape = find_shape(typed)
    assert shape is not None
    assert shape.name == meant
    assert shape.source == f"https://huggingface.co/{shape.repository}/blob/main/config.json"


def test_a_quantized_copy_that_is_not_here_is_counted_as_the_recipe_says_and_marked():
    assert "the name says 4-bit weights" in known_model("unsloth/llama-3-8b-bnb-4bit").assumed[0]
    assert not known_model("unsloth/llama-3-8b").assumed


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(TopcoatError, match="not among the models known by name"):
        known_model("llama-3.1-7b")
    assert "did you mean llama-3.1-" in str(unknown_model("llama-3.1-7b"))
    assert find_shape("gpt-5") is None
