"""Texts of messages that try a tokenizer's and a template's borders."""

from hypothesis import strategies as st

from topcoat.data.words import PIECES

SPECIAL = ("<", "<|", "|>", "<|im_end|>", "<|im_", "<|im_start|>", "</s>", "</think>")
"""Special tokens of common templates, whole and in pieces."""


def texts_of(*odd, most=12):
    """A strategy of texts: up to `most` of `odd`, pieces that words end at, and anything; no lone surrogates."""
    return st.lists(st.sampled_from((*PIECES, *odd)) | st.text(max_size=6), max_size=most).map(
        lambda parts: "".join(parts).encode("utf-8", "replace").decode()
    )
