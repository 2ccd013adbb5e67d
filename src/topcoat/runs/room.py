"""How many tokens of text fit a model's context once virtual tokens stand before them."""

from __future__ import annotations

from topcoat.errors import TopcoatError
from topcoat.recipe.schema import Recipe


def room_for_text(context_length: int, recipe: Recipe) -> int:
    """Positions of `context_length` that the recipe's adapter leaves for an example.

    Raises TopcoatError where virtual tokens leave none, or fewer than data.max_length.
    """
    n, asked = recipe.adapter.virtual_tokens, recipe.data.max_length
    room = context_length - n
    if not n:
        return room
    if room < 2:  # one token to read and one to predict
        raise TopcoatError(
            f"adapter.num_virtual_tokens is {n:,}, and the model's context is {context_length:,} tokens: no text fits",
            where="adapter.num_virtual_tokens",
            fix="write a smaller number; papers take 5 to 100",
        )
    if asked != "auto" and asked > room:
        raise TopcoatError(
            f"data.max_length is {asked:,}, and {n:,} virtual tokens leave {room:,} of the model's "
            f"{context_length:,} positions for text",
            where="data.max_length",
            fix=f"write data.max_length: {room} or less, or auto; or a smaller adapter.num_virtual_tokens",
        )
    return room
