"""What no matrix of a model can have is refused from its shapes alone."""

import pytest

from topcoat.adapters.settings import AdaloraConfig, FullConfig, LoraConfig, VeraConfig
from topcoat.errors import TopcoatError
from topcoat.planning.possible import require_possible, require_steps
from topcoat.planning.shapes import known_model
from topcoat.quant.settings import IntConfig, Nf4Config

LLAMA = known_model("llama-3.1-8b")  # hidden 4096, keys and values 1024, MLP 14336
SMOL = known_model("smollm2-135m")  # hidden 576, keys and values 192, MLP 1536


def problems(*settings) -> list[tuple[str, str, str]]:
    with pytest.raises(TopcoatError) as caught:
        require_possible(*settings)
    return [(one.what, one.where, one.fix) for one in caught.value.problems]


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
    assert what.startswith("group_size 128 does not divide the rows of q_proj (576), ")
    assert fix == "use a group_size of 16 or 32 or 64"
    require_possible(SMOL, LoraConfig(), IntConfig(group_size=128, overrides={"*": "nf4"}))


def test_everything_is_said_at_once():
    assert len(problems(SMOL, LoraConfig(r=500), IntConfig(group_size=256))) == 2


@pytest.mark.parametrize("adapter", [FullConfig(), VeraConfig(r=5000)])
def test_methods_without_such_a_bound_pass(adapter):
    require_possible(LLAMA, adapter, Nf4Config())


def test_adalora_needs_a_step_in_which_ranks_can_go():
    require_steps(AdaloraConfig(tinit=5, tfinal=4), 10)
    require_steps(AdaloraConfig(tinit=5, tfinal=5), None)
    require_steps(LoraConfig(), 1)
    with pytest.raises(TopcoatError, match="no step is left in which it could"):
        require_steps(AdaloraConfig(tinit=5, tfinal=5), 10)
