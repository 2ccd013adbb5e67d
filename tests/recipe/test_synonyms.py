"""Other tools' spellings: read where those tools write them, said in a note, refused where they contradict."""

import inspect

import pytest
from peft import LoraConfig as PeftLora
from transformers.training_args import OptimizerNames

from topcoat.adapters.settings import DoraConfig, LoraConfig
from topcoat.errors import TopcoatError
from topcoat.quant.settings import Int8Config, Nf4Config
from topcoat.recipe.fields import leaves, sections
from topcoat.recipe.load import recipe_from_dict, recipe_from_dict_with_notes
from topcoat.recipe.synonyms import ACCUMULATION, NO_MEANING, PER_DEVICE, SECTION_NAMES, SHORTHANDS, SYNONYMS, VALUES

REQUIRED = {"model": "x/y", "data": "rows.jsonl", "output": "o"}
FLAGS = {name for name, synonym in SYNONYMS.items() if synonym.read and synonym.read.__name__ == "read"}
# A value each synonym may have, where a number will not do.
SAMPLE = {
    "model.path": "x/y",
    "model.compute_dtype": "bf16",
    "model.attention": "eager",
    "model.chat_template": "template.jinja",
    "model.revision": "main",
    "model.quantization.double_quant": False,
    "adapter.method": "lora",
    "adapter.target_modules": ["q_proj", "up_proj"],
    "adapter.modules_to_save": ["lm_head"],
    "adapter.exclude_modules": ["lm_head"],
    "adapter.layers_to_transform": [0, 1],
    "adapter.rank_pattern": {"q_proj": 4},
    "adapter.alpha_pattern": {"q_proj": 4},
    "adapter.trainable_token_indices": [7],
    "adapter.init_lora_weights": "pissa",
    "adapter.use_rslora": True,
    "adapter.lora_dropout": 0.1,
    "data.train": "rows.jsonl",
    "data.validation": 0.2,
    "data.packing": False,
    "data.max_length": 512,
    "data.columns.text": "body",
    "train.lr_scheduler_type": "linear",
    "train.recompute": "block",
    "train.optimizer": "adamw_8bit",
    "train.optimizer_folder": "folder",
    "train.objective": "sft",
    "train.report_to": ["wandb"],
    "train.learning_rate": 1e-4,
    "output": "o",
}
FRACTIONS = (
    *("train.warmup_ratio", "train.weight_decay", "train.adam_beta1", "train.adam_beta2"),
    "train.label_smoothing",
)


def sample(name: str) -> object:
    if name in FLAGS:
        return True
    if name == "bnb_4bit_quant_type":
        return "nf4"
    target = SYNONYMS[name].target
    return SAMPLE.get(target, 0.01 if target in FRACTIONS else 8)


def recipe_with(place: str, name: str) -> dict:
    """A recipe that writes the synonym in a place ("" is the top) and says nothing else about its target."""
    target = SYNONYMS[name].target
    tree: dict = {"model": {}, "data": {}, "output": "o"}
    if target != "model.path":
        tree["model"] = {"path": "x/y"}
    if target != "data.train":
        tree["data"] = {"train": "rows.jsonl"}
    if target == "output":
        del tree["output"]
    if target == ACCUMULATION:
        tree["micro_batch_size"] = 2
    if target == "train.optimizer_folder":
        tree["train"] = {"optimizer": "paged_adamw"}  # the only one that keeps a file
    if target == "model.quantization.double_quant":
        tree["model"]["quantization"] = {"format": "nf4"}
    if name == "use_qalora":
        tree["model"]["quantization"] = {"format": "int4"}  # what it stands on
    into = tree
    for part in place.split(".") if place else []:
        into = into.setdefault(part, {})
    into[name] = sample(name)
    return tree


def value_at(recipe: object, dots: str) -> object:
    for part in dots.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    return recipe


CASES = [(place, name) for name, synonym in sorted(SYNONYMS.items()) for place in sorted(synonym.places())]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_every_synonym_is_read_in_every_place(place, name):
    synonym = SYNONYMS[name]
    if (*(place.split(".") if place else ()), name) in leaves():
        pytest.skip("here it is the setting itself")
    recipe, notes = recipe_from_dict_with_notes(recipe_with(place, name), check_files=False)
    written = f"{place}.{name}" if place else name
    if synonym.target == PER_DEVICE:
        assert recipe.train.batch_size == 8
    elif synonym.target == ACCUMULATION:
        assert recipe.train.batch_size == 16
    else:
        for target, value in synonym.values(sample(name)).items():
            assert value_at(recipe, target) == value
    assert any(written in note for note in notes), notes


@pytest.mark.parametrize("name", sorted(SYNONYMS))
def test_a_synonym_beside_the_setting_itself_is_refused(name):
    tree = recipe_with("", name) if SYNONYMS[name].at_top else recipe_with("adapter", name)
    target = SYNONYMS[name].target
    real = {PER_DEVICE: "train.batch_size", ACCUMULATION: "train.batch_size"}.get(target, target)
    if "." not in real and name == real:
        pytest.skip("at the top it is the setting itself")
    into = tree
    *above, last = real.split(".")
    for part in above:
        into = into.setdefault(part, {})
    into[last] = SAMPLE.get(real, 8)
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(tree, check_files=False)
    assert any(f"both set {real}" in problem.what for problem in caught.value.problems), str(caught.value)


def test_every_synonym_stands_for_a_setting():
    known = {".".join(path) for path in leaves()} | {PER_DEVICE, ACCUMULATION, "data.columns.text"}
    for name, synonym in SYNONYMS.items():
        assert synonym.target in known, name
    for (target, _), values in VALUES.items():
        assert {target, *values} <= known
    assert set(SHORTHANDS.values()) <= known
    assert {name.replace(".", "/") for name in SECTION_NAMES.values()} <= {"/".join(path) for path in sections()}


def test_no_word_is_both_read_and_meaningless():
    ours = {path[-1] for path in leaves()} | {path[-1] for path in sections() if path}
    assert not set(NO_MEANING) & set(SYNONYMS)
    assert not set(NO_MEANING) & ours
    assert not set(SECTION_NAMES) & {path[0] for path in sections() if path}


@pytest.mark.parametrize("name", sorted(NO_MEANING))
@pytest.mark.parametrize("place", ["", "train"])
def test_a_setting_without_meaning_says_why(name, place):
    tree = {**REQUIRED, **({name: 1} if not place else {place: {name: 1}})}
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(tree, check_files=False)
    [problem] = caught.value.problems
    assert problem.what == f"{f'{place}.' if place else ''}{name} has no meaning here: {NO_MEANING[name]}"
    assert problem.fix == "take the line out"


def test_the_batch_is_the_product(load):
    recipe, notes = load("per_device_train_batch_size: 2\ngradient_accumulation_steps: '8'\n")
    assert recipe.train.batch_size == 16
    [product] = [note for note in notes if " x " in note]
    assert product == (
        "per_device_train_batch_size 2 x gradient_accumulation_steps 8 (r.yaml line 4) is read as train.batch_size 16, "
        "the examples of one optimizer step; how they are split is decided by train.micro_batch_tokens and does not "
        "change the result"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("gradient_accumulation_steps: 4", "gradient_accumulation_steps multiplies a batch size that is not written"),
        ("micro_batch_size: 0", "micro_batch_size is 0; expected a whole number of at least 1"),
        (
            "micro_batch_size: 2\ngradient_accumulation_steps: auto",
            "gradient_accumulation_steps is 'auto'; expected a whole number",
        ),
        (
            "micro_batch_size: 2\nper_device_train_batch_size: 2",
            "per_device_train_batch_size and micro_batch_size (r.yaml line 4) both set",
        ),
        (
            "micro_batch_size: 2\nbatch_size: 2",
            "batch_size and micro_batch_size (r.yaml line 4) both set train.batch_size",
        ),
        ("micro_batch_size: 2\nbatch_tokens: 2", "micro_batch_size (r.yaml line 4) and batch_tokens are both written"),
    ],
)
def test_a_batch_that_is_no_product_is_refused(refused, text, what):
    [(said, _, _)] = refused(text)
    assert said.startswith(what)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("load_in_4bit: true", Nf4Config()),
        ("load_in_4bit: false", None),
        ("load_in_8bit: true", Int8Config()),
        ("load_in_4bit: true\nload_in_8bit: false\nbnb_4bit_use_double_quant: false", Nf4Config(double_quant=False)),
        ("adapter: qlora", Nf4Config()),
        ("adapter: {method: qlora, lora_r: 16}", Nf4Config()),
    ],
)
def test_quantization_is_read_in_bitsandbytes_words(load, text, wanted):
    recipe, _ = load(text)
    assert recipe.model.quantization == wanted
    assert recipe.adapter == LoraConfig()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "load_in_4bit: true\nload_in_8bit: true",
            "load_in_8bit and load_in_4bit (r.yaml line 4) both set model.quantization.format",
        ),
        ("load_in_4bit: 1", "load_in_4bit is 1; expected true or false"),
        (
            "load_in_4bit: true\nbnb_4bit_quant_type: fp4",
            "bnb_4bit_quant_type is 'fp4'; expected nf4; for fp4 write model.quantization: {format: fp4}",
        ),
        (
            "bnb_4bit_use_double_quant: true",
            "model.quantization.format is missing; expected one of bf16, fp16, fp32, nf4, nf3, nf2, "
            "nf4-icq, nf3-icq, nf2-icq, fp4, int8, "
            "int2, int3, int4, gguf, gptq, stored, plugin",
        ),
        (
            "load_in_8bit: true\nbnb_4bit_use_double_quant: true",
            "bnb_4bit_use_double_quant is a setting of format nf4 or nf3 or nf4-icq or fp4; "
            "this recipe has format int8",
        ),
        ("val_set_size: 200", "val_set_size is 200; expected a share below 1 (0 for none)"),
    ],
)
def test_quantization_in_words_that_contradict_is_refused(refused, text, what):
    said = refused(text)
    assert any(problem[0].startswith(what) for problem in said), said


def test_a_shorthand_is_its_section(load):
    base = "model: org/name\ndata: tickets.jsonl\noutput: o\nadapter: full\n"
    recipe, notes = load("", base=base)
    assert (recipe.model.path, recipe.data.train, recipe.adapter.method) == ("org/name", "tickets.jsonl", "full")
    assert notes == []


def test_values_in_other_words_are_read(load):
    text = "torch_dtype: bfloat16\nlr_scheduler: constant_with_warmup\nlora_target: all\n"
    text += "report_to: none\nval_set_size: 0\n"
    recipe, notes = load(text)
    assert recipe.model.compute_dtype == "bf16"
    assert recipe.train.lr_scheduler_type == "constant"
    assert recipe.adapter.target_modules == "all-linear"
    assert recipe.train.report_to == []
    assert recipe.data.validation is None
    assert "torch_dtype: bfloat16 (r.yaml line 4) is read as model.compute_dtype: bf16" in notes
    assert load("report_to: wandb")[0].train.report_to == ["wandb"]
    assert load("lora_target: q_proj, up_proj")[0].adapter.target_modules == ["q_proj", "up_proj"]


def test_an_axolotl_recipe_loads(load):
    text = """\
base_model: org/name
load_in_4bit: true
adapter: lora
train_file: tickets.jsonl
val_set_size: 0.05
output_dir: ./out
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
lr_scheduler: cosine
learning_rate: 0.0002
bf16: true
gradient_checkpointing: true
warmup_ratio: 0.1
weight_decay: 0.0
train_on_inputs: false
"""
    recipe, _ = load(text, base="")
    assert recipe.adapter == LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05)
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.data.max_length) == (8, 1, 2048)
    assert recipe.data.loss_on == "assistant"


def test_peft_fields_are_ours_or_are_answered():
    """Every field of PEFT's LoraConfig that Topcoat has under the same name means the same."""
    theirs = set(inspect.signature(PeftLora).parameters)
    ours = set(LoraConfig.model_fields) - {"method"}
    assert ours - theirs == {"freeze_lora_a", "loraplus_lr_ratio", "eva_rho"}  # optimizers and a nested config there
    assert {"bias", "task_type", "fan_in_fan_out"} <= theirs & set(NO_MEANING)


def test_pefts_switch_for_dora_is_a_method_here(load):
    recipe, _ = load("adapter: {use_dora: true, r: 4}\n")
    assert recipe.adapter == DoraConfig(r=4)
    assert load("adapter: {use_dora: false, r: 4}\n")[0].adapter == LoraConfig(r=4)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("adamw_torch", "adamw"), ("adamw_bnb_8bit", "adamw_8bit"), ("paged_adamw_32bit", "paged_adamw_32bit")],
)
def test_transformers_names_of_optimizers_are_read(theirs, ours):
    assert OptimizerNames(theirs).value == theirs
    recipe = recipe_from_dict(REQUIRED | {"optim": theirs}, check_files=False)
    assert recipe.train.optimizer == ours


def test_an_optimizer_that_is_not_built_is_refused_with_those_that_are():
    with pytest.raises(TopcoatError, match=r"optim is 'lion_8bit'; expected one of .*adamw_torch"):
        recipe_from_dict(REQUIRED | {"optim": "lion_8bit"}, check_files=False)
