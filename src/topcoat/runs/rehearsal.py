"""The worst first: before anything is scored or trained, the largest pieces of the run are computed once, thrown away.

Memory then fails in the first minute or never, of a run that goes on as well: the largest micro batch forward and
backward, the largest validation batch forward, and the longest prompts with room for the keys and values of whole
answers. What does not fit is halved, here as at any later step; nothing else that the next step depends on changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from topcoat.evaluation.answers import answer
from topcoat.runs.scoring import Evaluating, Scorer
from topcoat.runs.session import Session
from topcoat.training.loop import probe
from topcoat.training.rng import private_randomness


def rehearse(session: Session) -> None:
    """Compute the worst of training and evaluation; of a run that has ended nothing.

    Raises Refused where one example, or one prompt, does not fit by itself; Interrupted once a stop was asked for.
    """
    if session.progress.ended is not None:
        return
    with private_randomness():
        probe(session.loop(lambda done, figures: None))
    session.probed = True
    session.stop.check()
    scorer = session.scorer
    if len(scorer.batches):
        scorer.within_memory(lambda: _largest_batch(scorer))
    session.stop.check()
    if scorer.data.labels is None and scorer.questions:
        scorer.within_memory(lambda: _longest_prompts(scorer, session.stop.check))
    session.stop.check()


@torch.no_grad()
def _largest_batch(scorer: Scorer) -> None:
    with Evaluating(scorer.base.model):
        scorer.loss_of(max(scorer.batches, key=lambda batch: batch.input_ids.numel()))


def _longest_prompts(scorer: Scorer, check: Callable[[], None]) -> None:
    """The first tokens of the longest prompts' answers, in the memory that whole answers will leave."""
    longest = sorted(scorer.questions, key=lambda question: -len(question.prompt_ids))[: scorer.at_once]
    room = answer_room(scorer, len(longest))
    with Evaluating(scorer.base.model), scorer.precision():
        answer(scorer.base.model, scorer.base.tokenizer, longest, set(), 2, check=check, batch_size=len(longest))
    del room


def answer_room(scorer: Scorer, rows: int) -> Tensor:
    """As many zeros as the keys and values of `rows` answers of full length take."""
    config = scorer.base.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = rows * scorer.settings.max_new_tokens * 2 * heads * width * config.num_hidden_layers
    return torch.zeros(numbers, dtype=scorer.base.compute_dtype, device=scorer.base.device)
