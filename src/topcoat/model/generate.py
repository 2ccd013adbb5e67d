"""Text out of a model: batched greedy or sampled generation with a KV cache, shared by evaluation and chat.

Prompts of like length share a batch, padded on the left behind a mask with their own positions, and rows that are done
leave it. A row's tokens depend on its prompt and the seed alone: greedy takes the argmax; sampling draws from a stream
of its own, seeded by (seed, prompt, how often the prompt came before), and touches no global random state.

Nucleus sampling: Holtzman et al. 2019, arXiv:1904.09751.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from topcoat.adapters.virtual_tokens import virtual_tokens
from topcoat.errors import TopcoatError


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_token: Callable[[int], None] | None = None,
    batch_size: int = 32,
    check: Callable[[], None] | None = None,
) -> list[list[int]]:
    """New token ids for each prompt, in the order given, without the prompt and without the token that stopped it.

    Greedy at temperature 0. A prompt may get fewer than `max_new_tokens` where a token of `stop_ids` came, or the
    model's positions end. `on_token` sees every kept token as it comes, and is for a single prompt. `check` is called
    before every token and may raise to leave.

    Raises TopcoatError for a prompt that is empty or fills the model's context.
    """
    if on_token is not None and len(prompts) != 1:
        raise ValueError(f"on_token streams one prompt, not {len(prompts)}")
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30  # bloom and mamba have no limit
    limit -= virtual_tokens(model)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < limit:
            raise TopcoatError(
                f"prompt {index} has {len(prompt)} tokens; the model takes 1 to {limit - 1}",
                where="generate",
                fix="shorten the prompt",
            )
    rows = _rows(prompts, seed, [min(max_new_tokens, limit - len(prompt)) for prompt in prompts], temperature > 0)
    by_length = sorted(rows, key=lambda row: len(row.prompt))
    choose = _Chooser(temperature, top_p)
    pad = tokenizer.pad_token_id or 0
    was_training = model.training
    model.eval()
    # The head gets the last position cut out of (B, T, D). Given that strided view, torch's linear copies the head's
    # weight once for every row (1.8 GB for 32 rows of SmolLM2); given contiguous rows, it multiplies once.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                _run_batch(model, by_length[start : start + batch_size], choose, stop_ids, pad, on_token, check)
    finally:
        hook.remove()
        model.train(was_training)
    return [row.new for row in rows]


class _Row:
    """One prompt on its way: what it has produced and what it may still."""

    def __init__(self, prompt: Sequence[int], budget: int, random: torch.Generator | None) -> None:
        self.prompt, self.budget, self.random = list(prompt), budget, random
        self.new: list[int] = []
        self.done = budget <= 0

    def take(self, token: int, stop_ids: set[int], on_token: Callable[[int], None] | None) -> None:
        if token in stop_ids:
            self.done = True
            return
        self.new.append(token)
        self.done = len(self.new) >= self.budget
        if on_token is not None:
            on_token(token)


def _rows(prompts: Sequence[Sequence[int]], seed: int, budgets: Sequence[int], sampled: bool) -> list[_Row]:
    rows, before = [], Counter[tuple[int, ...]]()
    for prompt, budget in zip(prompts, budgets, strict=True):
        key = tuple(prompt)
        random = None
        if sampled:
            digest = hashlib.sha256(repr((seed, before[key], key)).encode()).digest()
            random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        before[key] += 1
        rows.append(_Row(prompt, budget, random))
    return rows


class _Chooser:
    """Logits -> one token a row."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        """logits (B, V) -> B tokens."""
        if self.temperature <= 0:
            return logits.argmax(-1).tolist()
        probs = torch.softmax(logits.float().cpu() / self.temperature, -1)  # (B, V)
        order = None
        if self.top_p < 1:
            probs, order = probs.sort(dim=-1, descending=True, stable=True)
            before = probs.cumsum(-1) - probs  # mass of the likelier tokens
            probs = probs.masked_fill(before >= self.top_p, 0)
        mass = probs.double().cumsum(-1)
        drawn = torch.stack([torch.rand(1, dtype=torch.float64, generator=row.random) for row in rows])  # (B, 1)
        # the first token whose cumulated mass exceeds the draw; a draw below 1 times the mass always finds one
        picked = torch.searchsorted(mass, drawn * mass[:, -1:], right=True)
        last = (probs > 0).sum(-1, keepdim=True) - 1 if order is not None else probs.shape[-1] - 1
        picked = torch.minimum(picked, torch.as_tensor(last))
        return (picked if order is None else order.gather(-1, picked)).squeeze(-1).tolist()


def _run_batch(
    model: PreTrainedModel,
    rows: list[_Row],
    choose: _Chooser,
    stop_ids: set[int],
    pad: int,
    on_token: Callable[[int], None] | None,
    check: Callable[[], None] | None,
) -> None:
    """Prefill, then one token a step for every row, until all rows are done."""
    device = model.device
    rows = [row for row in rows if not row.done]
    if not rows:
        return
    widest = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad] * (widest - len(row.prompt)) + row.prompt for row in rows], device=device)  # (B, T)
    lengths = torch.tensor([len(row.prompt) for row in rows], device=device)
    mask = (torch.arange(widest, device=device) >= (widest - lengths)[:, None]).long()  # (B, T)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    while True:
        if check is not None:
            check()
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        chosen = choose(out.logits[:, -1], rows)
        for row, token in zip(rows, chosen, strict=True):
            if not row.done:
                row.take(token, stop_ids, on_token)
        live = [i for i, row in enumerate(rows) if not row.done]
        if not live:
            return
        ids = torch.tensor(chosen, device=device)[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=-1)
        if len(rows) - len(live) > len(rows) // 8:  # copying the cache for every row that ends would cost more
            keep = torch.tensor(live, device=device)
            ids, positions, mask = ids[keep], positions[keep], mask[keep]
            cache.batch_select_indices(keep)
            rows = [rows[i] for i in live]
