"""PROMPTS: every method that adds tokens, by its name. A method is a settings type in `settings.py`, a function that
makes the tokens for a model, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from topcoat.adapters.prefix_tuning import p_tuning_v2, prefix_tuning
from topcoat.adapters.prompt_tuning import p_tuning, prompt_tuning
from topcoat.adapters.virtual_tokens import VirtualTokens

PROMPTS: dict[str, Callable[..., VirtualTokens]] = {
    "prompt_tuning": prompt_tuning,
    "p_tuning": p_tuning,
    "prefix_tuning": prefix_tuning,
    "p_tuning_v2": p_tuning_v2,
}
"""Method -> (model, its settings, start or None) -> virtual tokens, not yet installed."""
