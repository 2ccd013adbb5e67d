"""Values of settings: what is accepted, and what every refusal says."""

import math
import textwrap

import pytest
from wrong_recipes import problems, with_value

from topcoat.recipe.fields import accepts, choices, dotted, leaves, sections
from topcoat.recipe.load import recipe_from_dict_with_notes
from topcoat.training.settings import TrainSettings

LEAVES = sorted(leaves())
NUMBERS = [path for path in LEAVES if accepts(path, "number") and not choices(path)] + [
    path for path in LEAVES if accepts(path, "number") and choices(path) == ["auto"]
]


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
def test_every_number_is_checked(path):
    name = dotted(path)
    for wrong in (math.nan, math.inf, -math.inf, -1, "nan", True):
        said = [text for text in problems(with_value(path, wrong)) if text.startswith(f"{name} is ")]
        assert len(said) == 1, (name, wrong)
        assert "; expected a " in said[0]
    if not accepts(path, "string") or choices(path):
        [said] = [
            text for text in problems(with_value(path, "abc")) if text.startswith(f"{name} is 'abc'; expected a ")
        ]
        assert "number" in said.split("\n")[0]


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
def test_a_number_in_quotes_is_read_as_one(path):
    own = {"data.max_length": "64", "train.adam_epsilon": "1e-4"}
    own |= {"adapter.loraplus_lr_ratio": "1.6e1", "adapter.eva_rho": "1.5e0"}
    wanted = own.get(dotted(path))
    wanted = wanted or ("1e1" if accepts(path, "integer") else "1e-4")
    recipe, notes = recipe_from_dict_with_notes(with_value(path, wanted), check_files=False)
    value = recipe
    for part in path:
        value = getattr(value, part)
    assert value == float(wanted)
    assert type(value) is (int if accepts(path, "integer") else float)
    assert any(note.startswith(f"{dotted(path)}: '{wanted}' (python) is text; read as the number") for note in notes)


def test_a_number_with_an_exponent_is_a_number(load):
    recipe, notes = load("train: {learning_rate: 1e-4, batch_size: 1.6e1}")
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.batch_size == 16
    assert notes == []


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (
            "train: {learning_rate: fast}",
            "train.learning_rate is 'fast'; expected a number above 0 and below 1, or auto",
            "leave it out for the default, auto. Peak learning rate.",
        ),
        (
            "train: {learning_rate: 2}",
            "train.learning_rate is 2; expected a number above 0 and below 1, or auto",
            "leave it out for the default, auto. Peak learning rate.",
        ),
        (
            "train: {weight_decay: -1}",
            "train.weight_decay is -1; expected a number of at least 0 and at most 1",
            "leave it out for the default, 0. Decoupled decay of AdamW.",
        ),
        (
            "train: {batch_size: 2.5}",
            "train.batch_size is 2.5; expected a whole number of at least 1",
            "leave it out for the default, 16. Examples in one optimizer step.",
        ),
        (
            "train: {epochs: }",
            "train.epochs is empty; expected a number above 0",
            "leave it out for the default, 3. Passes over the training examples; a fraction stops inside one.",
        ),
        (
            "train: {lr_scheduler_type: cosin}",
            "train.lr_scheduler_type is 'cosin'; expected one of cosine, linear, constant",
            "did you mean cosine?",
        ),
        (
            "adapter: {use_rslora: yes}",
            "adapter.use_rslora is 'yes'; expected true or false",
            "write use_rslora: true",
        ),
        (
            "adapter: {use_rslora: OFF}",
            "adapter.use_rslora is 'OFF'; expected true or false",
            "write use_rslora: false",
        ),
        (
            "adapter: {use_rslora: 1}",
            "adapter.use_rslora is 1; expected true or false",
            "leave it out for the default, false. Divide by sqrt(r), rsLoRA (arXiv:2312.03732): keeps the update's "
            "size steady as r grows.",
        ),
        (
            "train: {warmup_ratio: 10}",
            "train.warmup_ratio is 10; expected a number of at least 0 and below 1",
            "a number of steps is warmup_steps: 10",
        ),
        (
            "train: {warmup_steps: 0.1}",
            "train.warmup_steps is 0.1; expected a whole number of at least 0, or null",
            "a share of the steps is warmup_ratio: 0.1",
        ),
        (
            "train: {max_grad_norm: 0}",
            "train.max_grad_norm is 0; expected a number above 0, or null",
            "write max_grad_norm: null for none",
        ),
        (
            "adapter: {target_modules: q_proj}",
            "adapter.target_modules is 'q_proj'; expected a list of names such as [q_proj, v_proj], or all-linear",
            "write target_modules: [q_proj]",
        ),
        (
            "adapter: {target_modules: all-liner}",
            "adapter.target_modules is 'all-liner'; expected a list of names such as [q_proj, v_proj], or all-linear",
            "did you mean all-linear?",
        ),
        (
            "adapter: {init_lora_weights: orthogonal, r: 3}",
            "adapter: an orthogonal start needs even ranks, and one is 3",
            "add one to it",
        ),
        (
            "adapter: {method: loraa}",
            f"adapter.method is 'loraa'; expected one of {', '.join(sections()['adapter',].tags())}",
            "did you mean lora?",
        ),
        (
            "evaluate: {metrics: [perplexty]}",
            "evaluate.metrics is [perplexty]; expected a list of these: perplexity, exact_match",
            "did you mean perplexity?",
        ),
        (
            "train: {batch_size: [1, 2]}",
            "train.batch_size is [1, 2]; expected a whole number of at least 1",
            "leave it out for the default, 16. Examples in one optimizer step.",
        ),
        ("seed: 2024-01-01", "seed is 2024-01-01; expected a whole number of at least 0 and below 2147483648", None),
        (
            "train: 5",
            "train is 5; expected a section of settings: " + ", ".join(TrainSettings.model_fields),
            "write them below it, indented:\n           train:\n             epochs: …",
        ),
    ],
)
def test_a_wrong_value_says_what_it_is_and_what_is_expected(refused, text, what, fix):
    [(said, where, advice)] = refused(text)
    assert said == what
    assert where == "r.yaml line 4"
    assert fix is None or advice == fix


def test_every_expected_value_can_be_said():
    for path in leaves():
        said = problems(with_value(path, 3 if accepts(path, "object") else {"no": "such"}))
        assert any(
            "; expected " in text and "{" not in text.split("; expected ")[1].split("such as")[0] for text in said
        )


def test_text_where_a_number_stands_is_told_to_be_quoted(refused):
    base = "model: {path: 3}\ndata: {train: tickets.jsonl, columns: {prompt: 3}}\noutput: 2024\n"
    said = refused("", base=base)
    assert ("model.path is 3; expected text", "r.yaml line 1", "put it in quotes if it is meant: path: '3'") in said
    assert ("output is 2024; expected text", "r.yaml line 3", "put it in quotes if it is meant: output: '2024'") in said
    assert said[1][0] == "data.columns.prompt is 3; expected the name of a column"


def test_missing_settings_are_named(refused):
    assert refused("", base="model: {}\ntrain: {epochs: 1}\n") == [
        (
            "model.path is missing",
            "r.yaml line 1",
            "write path: … under model. A directory in Hugging Face layout, a .gguf file, or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct.",
        ),
        (
            "data.train is missing",
            "r.yaml line 1",
            "write train: … under data. A file of rows: .jsonl, .json, .csv, .tsv, .parquet, or one of these with .gz, "
            ".bz2, .xz or .zst behind it.",
        ),
        (
            "output is missing",
            "r.yaml line 1",
            "write output: …. Folder of the run; made if it is not there, refused if it holds another run.",
        ),
    ]


def test_an_empty_section_is_its_defaults(load):
    assert load("train:\nadapter:\n")[0].train == TrainSettings()


def test_a_huge_number_is_refused(refused):
    [(what, _, _)] = refused(f"train: {{max_grad_norm: {'9' * 400}}}")
    assert what.startswith("train.max_grad_norm is 999")


def test_all_problems_are_said_at_once_with_their_lines(refused):
    text = """\
        adapter:
          r: 0
          lora_alph: 32
        train:
          epochs: .nan
          learning_rate: fast
          warmup_ratio: 0.1
          warmup_steps: 10
          logging_steps: 5
        evaluate: {metrics: [bleu]}
        max_seq_length: 4
    """
    base = "model: ./bose\ndata: {train: ticket.jsonl, packing: on}\n"
    said = refused(textwrap.dedent(text), base=base)
    lines = [int(where.rsplit(" ", 1)[1]) for _, where, _ in said]
    assert lines == sorted(lines)
    found = {(what.split(";")[0].split(":")[0], line) for (what, _, _), line in zip(said, lines, strict=True)}
    assert found == {
        ("output is missing", 1),
        ("model is ./bose, which is not there", 1),
        ("data.packing is 'on'", 2),
        ("data.train is ticket.jsonl, which is not there", 2),
        ("adapter.r is 0", 4),
        ("unknown setting adapter.lora_alph", 5),
        ("train.epochs is nan", 7),
        ("train.learning_rate is 'fast'", 8),
        ("train.warmup_ratio (r.yaml line 9) and train.warmup_steps are both written", 10),
        ("train.logging_steps has no meaning here", 11),
        ("evaluate.metrics is [bleu]", 12),
        ("max_seq_length (data.max_length) is 4", 13),
    }


def test_no_message_speaks_pydantic(refused):
    text = "adapter: {method: 3, r: []}\ntrain: {epochs: {}, report_to: [3], max_steps: x}\n"
    text += "model: {quantization: {format: 5}}\n"
    said = refused(text, base="data: [1]\noutput: null\n")
    spoken = "\n".join(" ".join(problem) for problem in said).lower()
    for word in ("input should", "pydantic", "discriminator", "literal", "constrained", "validation error", "type="):
        assert word not in spoken


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (
            "adapter: {method: dora, init_lora_weights: pissa}",
            "adapter.init_lora_weights is 'pissa'; expected one of true, gaussian, orthogonal",
            "leave it out for the default, true. Start of A and B, as LoRA's;",
        ),
        ("adapter: {method: vera, r: 0}", "adapter.r is 0; expected a whole number of at least 1", "the default, 256."),
    ],
)
def test_a_refusal_tells_what_the_picked_method_takes_and_not_another(refused, text, what, fix):
    [(said, _, way)] = refused(text)
    assert said.startswith(what)
    assert fix in way
    assert "olora" not in said


def test_a_refusal_tells_what_the_picked_format_takes_and_not_another(refused):
    base = "model: {path: ./base, quantization: {format: gptq, group_size: 48}}\ndata: tickets.jsonl\noutput: o\n"
    [(said, _, _)] = refused("", base=base)
    assert said.endswith("is 48; expected one of -1, 16, 32, 64, 128, 256, 512, 1024")
