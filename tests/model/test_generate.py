"""Generation gives what transformers gives, and a row alone gives what it gives in a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.model.generate import generate
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import TINY_TYPES, save_tiny, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 9, 30], [7], list(range(40, 90)), [5, 9, 31], [11, 12]]


def run(model, prompts=PROMPTS, n=12, stop=frozenset(), **options) -> list[list[int]]:
    return generate(model, TOKENIZER, prompts, n, set(stop), **options)


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "opt"])
def test_greedy_tokens_are_those_of_transformers(tmp_path, model_type):
    """Long enough for the sliding window of 32 to slide."""
    path = str(save_tiny(tmp_path, model_type))
    model = load_model(ModelSettings(path=path, compute_dtype="fp32", device="cpu")).model
    reference = tiny_model(model_type)
    ours = run(model, n=10)
    for prompt, tokens in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(10):
                ids = torch.cat((ids, reference(ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
        assert tokens == ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "seed": 3}])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_row_alone_is_the_row_in_a_batch(model_type, options):
    model = tiny_model(model_type)
    together = run(model, stop={50, 60, 70, 80}, **options)
    assert together == [run(model, [prompt], stop={50, 60, 70, 80}, **options)[0] for prompt in PROMPTS]
    assert together == run(model, stop={50, 60, 70, 80}, batch_size=2, **options)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(st.lists(st.integers(0, 511), min_size=1, max_size=20), min_size=1, max_size=6))
def test_order_and_company_change_nothing(prompts):
    model = tiny_model("qwen2")
    forward = run(model, prompts, 6, temperature=0.9)
    if len({tuple(prompt) for prompt in prompts}) == len(prompts):
        assert run(model, prompts[::-1], 6, temperature=0.9) == forward[::-1]
    assert all(len(tokens) == 6 for tokens in forward)


def test_a_stop_token_ends_its_row_and_is_left_out():
    model = tiny_model("llama")
    free = run(model)
    stop = free[0][4]
    stopped = run(model, stop={stop})
    for before, after in zip(free, stopped, strict=True):
        assert after == before[: before.index(stop) if stop in before else None]


def test_sampling_follows_the_seed_and_leaves_global_randomness_alone():
    model = tiny_model("llama")
    before = torch.random.get_rng_state()
    first = run(model, temperature=1.0, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert run(model, temperature=1.0, seed=1) == first
    assert run(model, temperature=1.0, seed=2) != first


def test_the_same_prompt_twice_gives_two_samples():
    one, two = run(tiny_model("llama"), [[5, 6]] * 2, temperature=1.0)
    assert one != two


def test_a_tiny_nucleus_is_greedy():
    model = tiny_model("llama")
    assert run(model, temperature=1.0, top_p=1e-6) == run(model)


def test_samples_follow_the_distribution():
    """2,000 first tokens against the softmax, in total variation; top_p leaves only the nucleus."""
    model = tiny_model("llama", vocab=500, layers=1)
    with torch.no_grad():
        probs = torch.softmax(model(torch.tensor([[7]])).logits[0, -1] / 0.2, -1)
    for top_p in (1.0, 0.6):
        order = probs.argsort(descending=True)
        inside = probs[order].cumsum(0) - probs[order] < top_p
        nucleus = torch.zeros_like(probs).index_put((order[inside],), probs[order[inside]])
        tokens = [t for (t,) in run(model, [[7]] * 2000, 1, temperature=0.2, top_p=top_p, batch_size=500)]
        counts = torch.bincount(torch.tensor(tokens), minlength=500) / len(tokens)
        assert counts[nucleus == 0].sum() == 0
        assert (counts - nucleus / nucleus.sum()).abs().sum() / 2 < 0.15


def test_tokens_stream_as_they_come():
    seen: list[int] = []
    (tokens,) = run(tiny_model("llama"), [[5, 9]], on_token=seen.append)
    assert seen == tokens
    with pytest.raises(ValueError, match="on_token streams one prompt, not 5"):
        run(tiny_model("llama"), on_token=seen.append)


def test_generation_stops_where_the_positions_end():
    model = tiny_model("llama", max_position_embeddings=8)
    assert [len(tokens) for tokens in run(model, [[1] * 3, [1] * 7], 50)] == [5, 1]
    with pytest.raises(TopcoatError, match="prompt 1 has 8 tokens; the model takes 1 to 7"):
        run(model, [[1], [1] * 8])
    with pytest.raises(TopcoatError, match="prompt 0 has 0 tokens"):
        run(model, [[]])


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama").train()
    hooks = len(model.lm_head._forward_pre_hooks)
    run(model)
    assert model.training
    assert len(model.lm_head._forward_pre_hooks) == hooks
    assert run(model, [], 5) == []
    assert run(model, [[1]], 0) == [[]]
