"""Words: what is remembered adds up to what the tokenizer would have made, or it is not used."""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import ISAS
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from topcoat.data import word_memory, words
from topcoat.data.word_native import NativeRules
from topcoat.data.word_rules import (
    CL100K,
    DIGIT,
    GPT2,
    LETTER,
    SIGN,
    WHITE,
    byte_characters,
    kinds_of_characters,
    rules_of,
)
from topcoat.data.words import NotSeparable, Words, words_of
from topcoat.kernels.native.library import threadless_library

TEXTS = st.lists(st.sampled_from(words.PIECES) | st.text(max_size=8) | st.just(" "), max_size=30).map("".join)
ASCII = st.lists(
    st.sampled_from([piece for piece in words.PIECES if piece.isascii()] + ["'RE", "'lL", "\r", "\x0b", "\x00", "0000"])
    | st.text(st.characters(max_codepoint=127), max_size=6)
    | st.just(" "),
    max_size=30,
).map("".join)
WIDE = (
    "Ünï",
    "٣",
    "½",
    "“",
    "”",
    "…",
    "—",
    "\u3000",
    "\u2028",
    "\u00a0",
    "한글",
    "'ſ",
    "e\u0301",
    "\u1100\u1161",
    "ﬆ",
    "々",
)
MIXED = st.lists(
    st.sampled_from([*WIDE, *words.PIECES, " ", " "])
    | st.text(st.characters(max_codepoint=0x24F), max_size=4)
    | st.text(max_size=2),
    max_size=24,
).map(lambda parts: "".join(parts).encode("utf-8", "replace").decode())
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
needs_library = pytest.mark.skipif(not ISAS, reason="there is no compiler here")


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    """Cuts by an expression, then bytes, as Llama 3 and Qwen have it."""
    cut = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])


CUTS = {
    "gpt2": (pre_tokenizers.ByteLevel(False), (GPT2, 0)),
    "smollm2": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
        (GPT2, 1),
    ),
    "llama3": (split(LLAMA3), (CL100K, 3)),
    "qwen2": (split(LLAMA3.replace("{1,3}", "")), (CL100K, 1)),
    "any digits": (split(LLAMA3.replace("{1,3}", "+")), (CL100K, 0)),
}
"""How tokenizers cut, and what rules_of says of it."""


@pytest.fixture(scope="module")
def tokenizer(chat_of) -> Tokenizer:
    return chat_of("chatml").tokenizer.backend_tokenizer


def cutting(tokenizer: Tokenizer, name: str, whole: bool = False) -> Tokenizer:
    """The tokenizer with another way to cut; `whole` takes a piece that is a token for it."""
    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = whole
    if whole:  # tokens that no merge makes, nor would be made by merging as they are
        spec["model"]["vocab"] |= {"user": 5000, "Word": 5001, "\u0120Word": 5002, "x" * 40: 5003}
    made = Tokenizer.from_str(json.dumps(spec))
    made.pre_tokenizer = CUTS[name][0]
    return made


def native_words(tokenizer: Tokenizer, by_rules: bool) -> Words:
    """Words remembered in C, merged there or by the library."""
    library, rules = threadless_library(), rules_of(json.loads(tokenizer.to_str()))
    assert library is not None
    assert rules is not None
    return Words(tokenizer, library, NativeRules(library, rules) if by_rules else None)


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[words.Encoded]:
    whole = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [(one.ids, [end for _, end in one.offsets]) for one in whole]


@pytest.fixture(scope="module", params=["arrays", *(["C", "C by rules"] if ISAS else [])])
def make(request):
    """make(tokenizer) -> Words that remember in one way or another."""
    if request.param == "arrays":
        return Words
    return lambda tokenizer: native_words(tokenizer, by_rules=request.param == "C by rules")


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS | TEXTS.map(lambda text: f"<|im_start|>user\n{text}<|im_end|>\n"), min_size=1, max_size=6))
def test_ids_and_ends_are_the_tokenizers(tokenizer, make, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    assert make(tokenizer).encode(texts) == expected(tokenizer, texts)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", CUTS)
@needs_library
def test_words_of_ascii_are_merged_as_the_tokenizer_does(tokenizer, name, whole):
    changed = cutting(tokenizer, name, whole)
    rules = rules_of(json.loads(changed.to_str()))
    assert rules is not None
    assert (rules.kind, rules.digits) == CUTS[name][1]
    assert (rules.whole is not None) == whole
    merging = native_words(changed, by_rules=True)
    asked = []
    merging._memory._spell = lambda words: asked.append(words) or merging._spelled(words)

    @settings(max_examples=100, deadline=None)
    @given(texts=st.lists(ASCII | st.just("user Word" + "x" * 40), min_size=1, max_size=4))
    def same(texts):
        assert merging.encode(texts) == expected(changed, texts)

    same()
    assert asked == []
    assert words_of(changed)._rules is not None


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("name", CUTS)
@needs_library
def test_words_of_any_letters_are_merged_as_the_tokenizer_does(tokenizer, name, composed):
    changed = cutting(tokenizer, name)
    changed.normalizer = normalizers.NFC() if composed else None
    merging = native_words(changed, by_rules=True)

    @settings(max_examples=100, deadline=None)
    @given(texts=st.lists(MIXED, min_size=1, max_size=4))
    def same(texts):
        with suppress(*[NotSeparable] * composed):  # a composed character is said to end before its accent
            assert merging.encode(texts) == expected(changed, texts)

    same()


@pytest.mark.parametrize("composed", [False, True])
def test_kinds_of_characters_are_those_of_the_librarys_expressions(composed):
    """Taking out what an expression finds leaves the characters of all other kinds."""
    pieces = {LETTER: r"\p{L}", DIGIT: r"\p{N}", WHITE: r"\s", SIGN: r"[^\s\p{L}\p{N}]"}
    kinds = kinds_of_characters(composed)
    sure = "".join(chr(code) for code in np.flatnonzero(kinds))
    assert len(sure) > 40_000
    for kind, expression in pieces.items():
        others = pre_tokenizers.Split(Regex(expression), "removed").pre_tokenize_str(sure)
        left = [character for character in sure if kinds[ord(character)] != kind]
        assert "".join(piece for piece, _ in others) == "".join(left)
    if composed:
        assert all(unicodedata.is_normalized("NFC", character) for character in sure)


@needs_library
def test_the_arrays_of_both_memories_are_the_same(tokenizer):
    plain, native = Words(tokenizer), native_words(tokenizer, by_rules=True)
    texts = ["a b  c", "", "één twee " * 30, "x" * 300 + " y", "\u2028 a", "a\u3000 b \u00a0", "Où est la gare? " * 3]
    data = "".join(texts).encode()
    begins = np.cumsum([0, *(len(text.encode()) for text in texts)])
    for _ in range(2):  # new words, then remembered ones
        found = [memory.arrays(data, begins, begins[:-1]) for memory in (plain, native)]
        for one, other in zip(*found, strict=True):
            assert one.tolist() == other.tolist()


def other_rules(spec: dict, change: str) -> dict:
    """The tokenizer.json of another kind."""
    if change == "prefix":
        spec["pre_tokenizer"]["add_prefix_space"] = True
    elif change == "trims":
        spec["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }
    elif change == "suffix":
        spec["model"]["end_of_word_suffix"] = "</w>"
    elif change == "expression":
        split = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
    return spec


@pytest.mark.parametrize("change", ["prefix", "trims", "suffix", "expression"])
def test_rules_that_are_not_known_are_none(tokenizer, change):
    spec = json.loads(cutting(tokenizer, "gpt2").to_str())
    assert rules_of(spec) is not None
    assert rules_of(other_rules(spec, change)) is None


def test_bytes_stand_for_the_characters_that_the_library_writes():
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    written = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("".join(map(chr, range(128))))
    assert "".join(piece for piece, _ in written) == "".join(byte_characters()[:128])


@needs_library
def test_rules_that_were_read_wrongly_are_left_alone(tokenizer, monkeypatch):
    changed = cutting(tokenizer, "llama3")
    other = rules_of(json.loads(cutting(tokenizer, "gpt2").to_str()))
    monkeypatch.setattr(words, "rules_of", lambda spec: other)
    found = words_of(changed)
    assert found is not None
    assert found._rules is None
    assert found._library is not None


def test_without_the_library_words_are_remembered_in_arrays(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "threadless_library", lambda: None)
    found = words_of(tokenizer)
    assert isinstance(found._memory, word_memory.WordMemory)
    assert isinstance(found.another()._memory, word_memory.WordMemory)


def test_a_memory_that_is_full_begins_anew(tokenizer, make, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 50)
    remembering = make(tokenizer)
    for number in range(20):
        texts = [f"word{number} another{number} third{number} and more{number}"]
        assert remembering.encode(texts) == Words(tokenizer).encode(texts)
    assert remembering._memory.held[0] < 100


def test_a_memory_of_many_words_finds_them_all(tokenizer, make):
    remembering = make(tokenizer)
    texts = [" ".join(f"w{number * 7919 % 100_003} {'long' * 8}{number}" for number in range(18_000))]
    first = remembering.encode(texts)
    assert remembering.encode(texts) == first
    assert first == expected(tokenizer, texts)


def test_words_that_could_not_be_learnt_are_not_remembered(tokenizer, make, monkeypatch):
    remembering = make(tokenizer)
    once = Words._encoded

    def failing(self, texts):
        raise NotSeparable(texts[0])

    text = ["été \ue000 naïve"]
    monkeypatch.setattr(Words, "_encoded", failing)
    with pytest.raises(NotSeparable):
        remembering.encode(text)
    monkeypatch.setattr(Words, "_encoded", once)
    assert remembering.encode(text) == expected(tokenizer, text)


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
    monkeypatch.setattr(word_memory, "BLOCK_WORDS", 16)
    assert Words(tokenizer).encode(texts) == whole
