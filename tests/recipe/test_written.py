"""Names of settings: every misspelling and misplacing is answered with the right one."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from wrong_recipes import problems, with_value

from topcoat.recipe.fields import dotted, leaves, sections

LEAVES = sorted(leaves())


@pytest.mark.parametrize("path", LEAVES, ids=dotted)
@pytest.mark.parametrize("slip", ["swapped", "dropped", "doubled", "shouted"])
def test_every_setting_misspelt_is_suggested(path, slip):
    key = path[-1]
    wrong = {
        "swapped": key[:-2] + key[-1:] + key[-2:-1],
        "dropped": key[: len(key) // 2] + key[len(key) // 2 + 1 :],
        "doubled": key[:1] + key,
        "shouted": key.upper(),
    }[slip]
    if len(key) == 1:
        wrong = key.upper()  # one letter has no other slip that still is it
    if wrong == key:  # a doubled letter swapped
        wrong = key + "s"
    tree = with_value((*path[:-1], wrong), 1)
    said = [text for text in problems(tree) if f"unknown setting {dotted((*path[:-1], wrong))}\n" in text]
    assert len(said) == 1
    assert key in said[0].split("fix:")[1].replace("?", " ").split()


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([p for p in LEAVES if len(p[-1]) >= 6]), at=st.integers(0, 30), letter=st.sampled_from("xz_")
)
def test_one_wrong_letter_anywhere_is_suggested(path, at, letter):
    key = path[-1]
    wrong = key[: at % len(key)] + letter + key[at % len(key) + 1 :]
    assume(wrong not in sections()[path[:-1]].keys and wrong.strip("_") == wrong)
    said = "\n".join(problems(with_value((*path[:-1], wrong), 1)))
    assert key in said


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("train: {lora_r: 8}", "lora_r belongs in adapter, as r"),
        ("train: {r: 8}", "r belongs in adapter, as r"),
        ("adapter: {learning_rate: 1}", "learning_rate belongs in train, as learning_rate"),
        ("every: 8", "every belongs in evaluate, as every"),
        ("adapter: {per_device_train_batch_size: 1}", "per_device_train_batch_size belongs in train, as batch_size"),
        ("train: {lerning_rate: 1}", "did you mean learning_rate?"),
        ("adapter: {lerning_rate: 1}", "did you mean learning_rate? It belongs in train, as learning_rate"),
        ("lora: {r: 8}", "the section is called adapter"),
        ("traning: {epochs: 3}", "did you mean train?"),
        ("quantization: {format: nf4}", "the section is called model.quantization"),
        ("xyzzy: 3", "a recipe has model, adapter, data, train, evaluate, guidance, output, seed"),
        ("evaluate: {xyzzy: 3}", "evaluate has metrics, every, rows, max_new_tokens, samples"),
    ],
)
def test_an_unknown_setting_says_where_it_belongs(refused, text, fix):
    [(what, where, said)] = refused(text)
    assert what.startswith("unknown setting ")
    assert where == "r.yaml line 4"
    assert said == fix


def test_a_setting_of_another_method_says_whose_it_is(refused):
    [(what, where, fix)] = refused("adapter:\n  method: full\n  r: 8\n")
    owners = [
        name for name in sections()["adapter",].tags() if "r" in sections()["adapter",].variant(name).model_fields
    ]
    assert {"lora", "dora", "vera", "miss"} <= set(owners)
    assert what == f"adapter.r is a setting of method {' or '.join(owners)}; this recipe has method full"
    assert where == "r.yaml line 6"
    assert fix == f"take it out, or write method: {' or '.join(owners)}"
