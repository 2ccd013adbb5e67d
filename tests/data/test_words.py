"""Words: what is remembered adds up to what the tokenizer would have made, or it is not used."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from topcoat.data import words
from topcoat.data.words import NotSeparable, Words, words_of

TEXTS = st.lists(st.sampled_from(words.PIECES) | st.text(max_size=8) | st.just(" "), max_size=30).map("".join)


@pytest.fixture(scope="module")
def tokenizer(chat_of) -> Tokenizer:
    return chat_of("chatml").tokenizer.backend_tokenizer


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS | TEXTS.map(lambda text: f"<|im_start|>user\n{text}<|im_end|>\n"), min_size=1, max_size=6))
def test_ids_and_ends_are_the_tokenizers(tokenizer, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    found = Words(tokenizer).encode(texts)
    whole = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert found == [(one.ids, [end for _, end in one.offsets]) for one in whole]


def test_a_memory_that_is_full_begins_anew(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 50)
    remembering = Words(tokenizer)
    for number in range(20):
        texts = [f"word{number} another{number} third{number} and more{number}"]
        assert remembering.encode(texts) == Words(tokenizer).encode(texts)
    assert remembering._table.n < 100


def test_tokenizers_that_cut_otherwise_are_left_alone(chat_of, tokenizer):
    assert words_of(tokenizer) is not None
    assert words_of(chat_of("llama2").tokenizer.backend_tokenizer) is None  # writes ▁ in front of a text
    assert words_of(chat_of("phi3").tokenizer.backend_tokenizer) is None  # tokens that take white space with them
    spec = Tokenizer.from_str(tokenizer.to_str())
    spec.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+ \w+|\w+|\W+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    pairs = spec.encode("a b", add_special_tokens=False).tokens
    assert len(pairs) <= 3
    assert words_of(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))) is None
    spec.add_tokens([AddedToken("<word>", single_word=True)])
    assert words_of(spec) is None


def test_a_text_that_does_not_add_up_is_said(tokenizer):
    remembering = Words(tokenizer)
    (ids, ends) = remembering.encode(["The user asks"])[0]
    remembering.check("The user asks", (ids, ends))
    with pytest.raises(NotSeparable):
        remembering.check("The user asks", ([*ids[:-1], ids[-1] + 1], ends))


def test_a_long_text_is_looked_up_in_blocks(tokenizer, monkeypatch):
    texts = [" ".join(f"word{n % 7} <|im_start|> é{n}" for n in range(50)), "", "x" * 900]
    whole = Words(tokenizer).encode(texts)
    monkeypatch.setattr(words, "BLOCK_WORDS", 16)
    assert Words(tokenizer).encode(texts) == whole
