"""What no matrix of a model can have is refused from its shapes alone."""

import pytest

from topcoat.adapters.settings import AdaloraConfig, FullConfig, LoraConfig, MissConfig, QaloraConfig, VeraConfig
from topcoat.errors import TopcoatError
from topcoat.planning.possible import require_possible, require_steps
from topcoat.planning.shapes import known_model
from topcoat.quant.settings import GgufConfig, GptqConfig, IntConfig, Nf4Config

LLAMA = known_model("llama-3.1-8b")  # hidden 4096, keys and values 1024, MLP 14336
SMOL = known_model("smollm2-135m")  # hidden 576, keys and values 192, MLP 1536


def problems(*settings) -> list[tuple[str, str, str]]:
    with pytest.raises(TopcoatError) as caught:
        require_possible(*settings)
    return [(one.what, one.where, one.fix) for one in caught.value.problems]


def test_rows_that_an_override_cannot_store_are_said_of_the_override():
    (found,) = problems(SMOL, LoraConfig(), Nf4Config(overrides={"q_proj": {"format": "int4", "group_size": 128}}))
    assert found[1] == "model.quantization.overrides"
    (found,) = problems(SMOL, LoraConfig(), IntConfig(group_size=128, overrides={"down_proj": "nf4"}))
    assert found[1] == "model.quantization.group_size"


def test_a_rank_above_a_matrix_is_refused():
    require_possible(LLAMA, LoraConfig(r=1024), None)
    [(what, where, fix)] = problems(LLAMA, LoraConfig(r=1025), None)
    assert what == "rank 1025 is above k_proj's, which is (1024, 4096): no change of it has a rank over 1024"
    assert (where, fix) == ("adapter.r", "write a smaller r, or rank_pattern: {k_proj: 1024}")
    require_possible(LLAMA, LoraConfig(r=1025, target_modules=["q_proj"]), None)
    require_possible(LLAMA, LoraConfig(r=1025, rank_pattern={"k_proj|v_proj": 8}), None)
    [(_, where, _)] = problems(LLAMA, LoraConfig(r=8, rank_pattern={"k_proj": 2000}), None)
    assert where == "adapter.rank_pattern"


def test_a_group_that_does_not_divide_a_row_is_refused_with_those_that_do():
    require_possible(SMOL, LoraConfig(), IntConfig(group_size=64))
    [(what, _, fix)] = problems(SMOL, LoraConfig(), IntConfig(group_size=128))
    assert what.startswith("group_size 128 does not divide rows of 576 weights: q_proj, k_proj, ")
    assert fix == "use a group_size of 16 or 32 or 64"
    require_possible(SMOL, LoraConfig(), IntConfig(group_size=128, overrides={"*": "nf4"}))


def test_everything_is_said_at_once():
    assert len(problems(SMOL, LoraConfig(r=500), IntConfig(group_size=256))) == 2


STORED_ENDS = Nf4Config(overrides={"lm_head": "int8", "embed_tokens": "int8"})


@pytest.mark.parametrize(
    ("model", "adapter", "quantization", "what", "fix"),
    [
        (SMOL, AdaloraConfig(init_r=200), None, "init_r 200 is above the rank of k_proj, which is (192, 576)", "192"),
        (SMOL, MissConfig(r=200), None, "rank 200 is above k_proj's, which is (192, 576)", "write r: 192 or less"),
        (SMOL, QaloraConfig(r=19), IntConfig(), "rank 19 is above q_proj's, which has 18 groups of 32 in a row", "18"),
        (SMOL, QaloraConfig(r=8), IntConfig(group_size=64), "qalora_group_size is 32, and these rows of 576", ": 64"),
        (SMOL, QaloraConfig(r=8), GgufConfig(type="Q4_0"), "they are gguf: q_proj", "format: int4"),
        (SMOL, LoraConfig(rank_pattern={"q_porj": 8}), None, "adapter.rank_pattern has 'q_porj'", "q_proj"),
        (SMOL, LoraConfig(), GptqConfig(group_size=256), "group_size 256 does not divide rows of 576", "64 or -1"),
        (
            SMOL,
            LoraConfig(),
            Nf4Config(overrides={"*.dwn_proj": "int8"}),
            "matched no linear layer: ['*.dwn_proj']",
            "down_proj",
        ),
        (
            SMOL,
            LoraConfig(),
            Nf4Config(overrides={"q_proj": {"format": "int4", "group_size": 128}}),
            "group_size 128 does not divide rows of 576 weights: q_proj",
            "16 or 32 or 64",
        ),
        (SMOL, LoraConfig(), Nf4Config(overrides={"lm_head": "int8"}), "are one weight in this model", "name both"),
        (SMOL, LoraConfig(trainable_token_indices=[49152]), None, "has 49152, and the embedding ends at 49151", "ids"),
        (
            SMOL,
            LoraConfig(modules_to_save=["lm_head"]),
            None,
            "lm_head shares its weight with model.embed_tokens",
            "out of",
        ),
        (
            LLAMA,
            LoraConfig(modules_to_save=["lm_head"]),
            STORED_ENDS,
            "trains lm_head whole, and lm_head is stored",
            "overrides",
        ),
        (
            LLAMA,
            LoraConfig(trainable_token_indices=[3]),
            STORED_ENDS,
            "rows of model.embed_tokens, and model.emb",
            "overrides",
        ),
        (LLAMA, LoraConfig(init_lora_weights="pissa"), Nf4Config(), "is pissa, and q_proj is stored as nf4", "loftq"),
    ],
)
def test_what_a_run_would_refuse_once_it_has_loaded_is_refused_from_shapes(model, adapter, quantization, what, fix):
    [(said, where, way_out)] = problems(model, adapter, quantization)
    assert what in said
    assert where.startswith(("adapter.", "model.quantization"))
    assert fix in way_out


def test_a_pattern_and_a_format_that_fit_some_linears_pass():
    require_possible(SMOL, LoraConfig(), Nf4Config(overrides={"down_proj": {"format": "int4", "group_size": 256}}))
    require_possible(SMOL, QaloraConfig(r=18), IntConfig())
    require_possible(LLAMA, LoraConfig(modules_to_save=["lm_head"], trainable_token_indices=[128255]), Nf4Config())


def test_a_head_of_labels_is_tied_to_nothing():
    require_possible(SMOL, LoraConfig(modules_to_save=["embed_tokens"]), None, labelled=True)


@pytest.mark.parametrize("adapter", [FullConfig(), VeraConfig(r=5000)])
def test_methods_without_such_a_bound_pass(adapter):
    require_possible(LLAMA, adapter, Nf4Config())


def test_adalora_needs_a_step_in_which_ranks_can_go():
    require_steps(AdaloraConfig(tinit=5, tfinal=4), 10)
    require_steps(AdaloraConfig(tinit=5, tfinal=5), None)
    require_steps(LoraConfig(), 1)
    with pytest.raises(TopcoatError, match="no step is left in which it could"):
        require_steps(AdaloraConfig(tinit=5, tfinal=5), 10)
