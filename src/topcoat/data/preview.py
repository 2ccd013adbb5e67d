"""Preview: one example with every token shown as trained or not, for a terminal and as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from topcoat.data.mask import IGNORE_INDEX
from topcoat.data.render import Example

# Control characters as pictures (ESC -> ␛): data must not steer the terminal it is shown on
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
TRAINED, CONTEXT, SPECIAL = "black on green", "dim", "bold"


def preview(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The example in colours: trained tokens on green, context dim, special tokens bold."""
    text = Text(f"{example.row.place}: {len(example.input_ids):,} tokens, {example.n_target_tokens:,} trained\n")
    for piece, trained, special in pieces(example, tokenizer):
        text.append(piece.translate(VISIBLE), f"{TRAINED if trained else CONTEXT}{' ' + SPECIAL if special else ''}")
    return text


def legend() -> Text:
    """One line that explains the colours."""
    return Text.assemble(("trained", TRAINED), "  ", ("context", CONTEXT), "  ", ("special token", SPECIAL))


def plain(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The example with «» around what is trained."""
    found, inside = [], False
    for piece, trained, _ in pieces(example, tokenizer):
        if trained != inside:
            found.append("«" if trained else "»")
            inside = trained
        found.append(piece.translate(VISIBLE))
    return "".join(found) + ("»" if inside else "")


def pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool, bool]]:
    """(text, is trained, is special) of runs of equal tokens; joined they are the decoded example.

    The first token of an example is never trained: nothing stands before it.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids, labels = example.input_ids, [IGNORE_INDEX, *example.labels[1:]]
    kinds = [(label != IGNORE_INDEX, token in special) for token, label in zip(ids, labels, strict=True)]
    start, said = 0, ""
    for at in range(1, len(ids) + 1):
        if at < len(ids) and kinds[at] == kinds[start]:
            continue
        # decoded from the beginning: a run alone would lose its leading space or half a character
        whole = str(tokenizer.decode(ids[:at], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        yield whole[len(said) :], *kinds[start]
        start, said = at, whole
