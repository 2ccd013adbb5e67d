"""Whole runs by graphs: as good as launches and resumed bit for bit; what cannot be captured is refused at once."""

from __future__ import annotations

import pytest
import torch
from recorded_ops import RecordedOps, static_attention

from topcoat.errors import Interrupted, TopcoatError
from topcoat.model.tiny import tiny_model
from topcoat.recipe.load import recipe_from_dict
from topcoat.recipe.uncaptured import find_uncaptured
from topcoat.runs import graphs, opening
from topcoat.runs.engine import Engine
from topcoat.runs.run import run
from topcoat.training.replay import Replay
from topcoat.training.step_rules import STEP_RULES

BY_GRAPHS = {"model": {"compute_dtype": "bf16"}, "train": {"cuda_graphs": True, "micro_batch_tokens": 64}}


@pytest.fixture
def tape(monkeypatch):
    """A GPU that is none: runs on the CPU capture a tape of operators. Every Replay of the test, in a list."""
    made: list[Replay] = []

    class Remembered(Replay):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(graphs, "check_device", lambda base: [])
    monkeypatch.setattr(opening, "require_device", lambda settings, device: None)
    monkeypatch.setattr(graphs, "CudaCapture", lambda device: RecordedOps())
    monkeypatch.setattr(graphs, "Replay", Remembered)
    with static_attention():
        yield made


def test_a_run_by_graphs_learns_what_a_run_by_launches_learns(tape, tiny_recipe, train, trace):
    recipe = tiny_recipe("graphs", **BY_GRAPHS)
    by_graphs = train(recipe)
    launches = tiny_recipe("launches", model=BY_GRAPHS["model"], train={"micro_batch_tokens": 64})
    by_launches = train(launches)
    assert tape[0].replayed > 0
    assert tape[0].given_up is None
    found, expected = (
        [float.fromhex(row["loss"]) for row in trace(r["output"])["metrics"] if "loss" in row]
        for r in (recipe, launches)
    )
    assert found == pytest.approx(expected, rel=2e-2)  # bf16 products of padded batches round in another order
    assert by_graphs.tuned.perplexity == pytest.approx(by_launches.tuned.perplexity, rel=5e-2)


def test_a_stopped_run_by_graphs_ends_as_one_that_never_was(tape, tiny_recipe, train, trace, ear, stop_after):
    whole = tiny_recipe("whole", **BY_GRAPHS)
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](3)))
    train(stopped, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


@pytest.mark.parametrize(
    ("sections", "said", "fix"),
    [
        (
            {"adapter": {"method": "dora"}},
            "only hand-written blocks are captured (layers.0.self_attn.q_proj: ",
            "write adapter.method: lora, on a model of a family they know",
        ),
        (
            {"model": {"compute_dtype": "fp32"}},
            "FlashAttention wants half precision",
            "write model.compute_dtype: bf16",
        ),
    ],
    ids=["DoRA", "fp32"],
)
def test_what_the_engine_cannot_capture_is_refused_with_what_to_write(sections, said, fix, tape, tiny_recipe, train):
    merged = {name: {**BY_GRAPHS.get(name, {}), **sections.get(name, {})} for name in BY_GRAPHS | sections}
    with pytest.raises(TopcoatError) as caught:
        train(tiny_recipe(**merged))
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"train.cuda_graphs: {said}")
    assert problem.fix == f"{fix}, or write train.cuda_graphs: false"


ADALORA = {"method": "adalora", "init_r": 5, "target_r": 3, "tinit": 1, "tfinal": 2}
UNCAPTURED = [
    ({"data": {"packing": False}}, "data.packing is false and train.cuda_graphs is true: padded batches have too many"),
    ({"adapter": {"lora_dropout": 0.1}}, "adapter.lora_dropout is 0.1 and train.cuda_graphs is true: a graph would"),
    ({"train": {"neftune_noise_alpha": 5}}, "train.neftune_noise_alpha is 5 and train.cuda_graphs is true: a graph"),
    ({"adapter": ADALORA}, "adapter.method is adalora and train.cuda_graphs is true: its ranks change from step to"),
    (
        {"train": {"objective": "regression"}},
        "train.objective is regression and train.cuda_graphs is true: only tokens'",
    ),
]


@pytest.mark.parametrize(("sections", "said"), UNCAPTURED, ids=[said.split()[0] for _, said in UNCAPTURED])
def test_what_the_recipe_rules_out_is_refused_before_anything_is_loaded(sections, said, tiny_recipe):
    recipe = tiny_recipe(**BY_GRAPHS)
    for section, values in sections.items():
        recipe[section] = values if values is ADALORA else {**recipe[section], **values}
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(recipe)
    assert any(problem.what.startswith(said) for problem in caught.value.problems)
    assert all(problem.fix for problem in caught.value.problems)


@pytest.mark.parametrize("method", STEP_RULES)
def test_every_method_that_changes_from_step_to_step_is_refused(method):
    asked = {"train.cuda_graphs": True, "adapter.method": method}
    assert [dots for dots, _, _ in find_uncaptured(asked.get)] == ["adapter.method"]


def test_a_recipe_built_in_python_is_refused_too(tape, tiny_recipe):
    recipe = recipe_from_dict(tiny_recipe(**BY_GRAPHS))
    train = recipe.train.model_copy(update={"neftune_noise_alpha": 5.0})
    with pytest.raises(TopcoatError, match=r"neftune_noise_alpha is 5.0 and train.cuda_graphs is true"):
        run(recipe.model_copy(update={"train": train}))


def test_the_plan_says_that_a_run_goes_by_graphs():
    said = Engine(fused=object(), policies=("none", "none"), graphs=True).describe()
    assert said == "hand-written blocks, recompute none in all 2 layers, CUDA graphs"


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_wait_for_the_longest_document_are_refused(rope, tape, tiny_recipe, train, monkeypatch):
    monkeypatch.setattr(graphs, "rope_types", lambda model: {rope})
    with pytest.raises(TopcoatError, match=f"{rope} positions wait for the longest document's length"):
        train(tiny_recipe(**BY_GRAPHS))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_kind_of_positions_is_read_from_the_model(family):
    assert graphs.rope_types(tiny_model(family)) == {"default"}


def test_the_head_of_a_run_by_graphs_does_nothing_but_multiply(tape, tiny_recipe, train, monkeypatch):
    monkeypatch.setattr(graphs, "plain_head", lambda model: None)
    with pytest.raises(TopcoatError, match="the head does more than multiply and cap its logits"):
        train(tiny_recipe(**BY_GRAPHS))


def test_without_a_gpu_a_run_is_refused_before_anything_else_is_asked(tiny_recipe, train):
    with pytest.raises(TopcoatError) as caught:
        train(tiny_recipe(train={"cuda_graphs": True}))
    assert str(caught.value.problems[0]) == (
        "train.cuda_graphs: this run computes on cpu, and graphs are for CUDA GPUs\n"
        "  where: train.cuda_graphs\n"
        "  fix:   write train.cuda_graphs: false, or train on a GPU"
    )


def test_everything_in_the_way_is_said_at_once(tape, tiny_recipe, train, monkeypatch):
    monkeypatch.setattr(graphs, "rope_types", lambda model: {"dynamic"})
    with pytest.raises(TopcoatError) as caught:
        train(tiny_recipe(train={"cuda_graphs": True}))
    assert [problem.what for problem in caught.value.problems] == [
        "train.cuda_graphs: FlashAttention wants half precision",
        "train.cuda_graphs: dynamic positions wait for the longest document's length",
    ]


def test_memory_that_runs_out_lets_go_of_the_graphs(tape, tiny_recipe, train, ear, monkeypatch):
    real, failed = Replay.__call__, []

    def full(self, batch, factor):
        if self.replayed and not failed and len(batch.rows) > 1:
            failed.append(len(self._shapes))
            raise torch.OutOfMemoryError("CUDA out of memory")
        answer = real(self, batch, factor)
        assert not failed or len(self._shapes) <= failed[0] + 1
        return answer

    forgotten = []
    forget = Replay.forget
    monkeypatch.setattr(Replay, "__call__", full)
    monkeypatch.setattr(Replay, "forget", lambda self: (forgotten.append(len(self._shapes)), forget(self)))
    listener = ear()
    train(tiny_recipe(**BY_GRAPHS), listener=listener)
    assert "memory ran out (CUDA out of memory)" in listener.text
    assert forgotten[0] == failed[0]
    assert failed[0] > 0
